"""f-distill of the digits teacher: one step by the Jensen-Shannon divergence.

    distilljax train --config=configs/digits/f_distill.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1000 cycles of 130, 183 s on 2 shared cores.
Expected: Frechet distance 1.41 (one seed) times the teacher's at 1 step, accuracy at
least 0.998, recall at least 0.72.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "f_distill",
        {
            "divergence": "js",
            "critic_steps": 2,
            "gan_weight": 0.01,
            "gan_critic_weight": 0.02,
            "floor": 0.05,
        },
        cycles=1000,
        batch_size=130,
        student={
            "optimizer": "adamw",
            "lr": 5e-4,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
        fake_score={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
        },
        discriminator={
            "optimizer": "adamw",
            "lr": 1e-3,
            "betas": (0.5, 0.99),
            "clip": 1.0,
        },
    )
