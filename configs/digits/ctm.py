"""Consistency trajectories of the digits teacher.

    distilljax train --config=configs/digits/ctm.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 12 teacher evaluations a cycle on
average; not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "ctm",
        {"segments": 8, "grid": "EvenGrid()", "target_decay": 0.95},
        second_time=True,
        cycles=1800,
        batch_size=256,
        student={
            "optimizer": "adamw",
            "lr": 5e-4,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
    )
