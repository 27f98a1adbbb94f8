"""Trajectory distribution matching (tdm) of the digits teacher, for 1, 2 and 4 steps.

    distilljax train --config=configs/digits/tdm.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1000 cycles of 130, not timed.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "tdm",
        {
            "steps": (1, 2, 4),
            "critic_steps": 2,
            "metric": "half_mse",
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
    )
