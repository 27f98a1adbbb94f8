"""Latent adversarial distillation (ladd) of the digits teacher, 1 to 4 steps.

    distilljax train --config=configs/digits/ladd.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1000 cycles of 130, 124 s on 2 shared cores.
Expected: Frechet distance 2.17, 2.28, 3.07 (one seed) times the teacher's at 1, 2, 4
steps, accuracy at least 0.998, recall at least 0.63.
Reproduces: no paper's row. With a discriminator that is not told the step it grows
worse with the number of steps: 2.34, 3.50, 8.65.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "ladd",
        {
            "steps": 4,
            "shares": (0.7, 0.1, 0.1, 0.1),
            "law": "Uniform()",
            "r1_weight": 0.1,
            "critic_steps": 4,
            "told_start": True,
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
        discriminator={
            "optimizer": "adamw",
            "lr": 1e-3,
            "betas": (0.5, 0.99),
            "clip": 1.0,
        },
    )
