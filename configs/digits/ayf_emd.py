"""Align Your Flow (Eulerian) distillation of the digits teacher.

    distilljax train --config=configs/digits/ayf_emd.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256; not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "ayf_emd",
        {"law": "Interval(LogitNormal(0.0, 1.5))", "warmup": "Ramp(300, 0.0, 0.99)"},
        second_time=True,
        cycles=1800,
        batch_size=256,
        student={
            "optimizer": "adamw",
            "lr": 5e-4,
            "betas": (0.9, 0.95),
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
    )
