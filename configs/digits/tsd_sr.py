"""TSD-SR: digits restored from their 4x4 means in one step, by adapters on one base.

    distilljax train --config=configs/digits/tsd_sr.py --teacher=runs/digits/restoration

Student and fake score are the frozen teacher plus low-rank adapters. The student starts
from the degraded image in place of noise.
Hardware: 2 CPU cores. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.cards import digits_card


def get_config():
    return digits_card(
        "tsd_sr",
        {"start": "degraded"},
        source="degraded_digits",
        network={"image_channels": 1},
        lora={"roles": ("student", "fake_score"), "rank": 16},
        cycles=600,
        batch_size=128,
        student_lora={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
        fake_score_lora={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
        },
    )
