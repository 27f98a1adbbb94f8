"""SANA-Sprint (sana_sprint) of the digits teacher.

    distilljax train --config=configs/digits/sana_sprint.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 377 s on 2 shared cores.
Expected: Frechet distance 2.10, 1.31, 1.25 (one seed) times the teacher's at 1, 2, 4
steps, accuracy at least 0.999, recall at least 0.54.
Reproduces: no paper's row. Its recall at one step is 0.54.
"""  # noqa: E501

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "sana_sprint",
        {
            "law": "LogNormal(0.0, 1.4)",
            "adversarial_weight": 0.01,
            "scm_weight": 1.0,
            "noise_law": "LogNormal(0.09, 1.0)",
            "warmup": 400,
            "scm_options": {"tangent": None, "learned_weight": False},
        },
        cycles=1800,
        batch_size=256,
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
