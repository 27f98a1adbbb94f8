"""Dual-End Consistency (de_cm) of the digits teacher.

    distilljax train --config=configs/digits/de_cm.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 233 s on 2 shared cores.
Expected: Frechet distance 1.57, 1.63, 1.57 (one seed) times the teacher's at 1, 2, 4
steps, accuracy at least 0.997, recall at least 0.66.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "de_cm",
        {
            "law": "LogitNormal(0.0, 1.4)",
            "start": "Ramp(900, 0.9, 1.0)",
            "warmup": "Ramp(300)",
        },
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
