"""Policies that imitate the digits teacher.

    distilljax train --config=configs/digits/pi_flow.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256 with two teacher evaluations; not
measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "pi_flow",
        {"teacher_ratio": "Ramp(500, 1.0, 0.0)", "substeps": 16},
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
