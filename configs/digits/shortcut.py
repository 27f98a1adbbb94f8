"""Shortcut distillation of the digits teacher.

    distilljax train --config=configs/digits/shortcut.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 160 s on 2 shared cores.
Expected: Frechet distance 1.94, 1.58, 1.29 (one seed) times the teacher's at 1, 2, 4
steps, accuracy at least 0.998, recall at least 0.69.
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
