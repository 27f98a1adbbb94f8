"""Shortcut distillation of the digits teacher.

    distilljax train --config=configs/digits/shortcut.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256; not measured.
Expected: not measured.
Reproduces: no paper's row. A teacher gives the velocity, and half of the samples jump.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "shortcut",
        {"levels": 5, "share": 0.5, "target_decay": 0.99},
        second_time=True,
        cycles=1800,
        batch_size=256,
        student={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
    )
