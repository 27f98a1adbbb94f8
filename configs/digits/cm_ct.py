"""Consistency training (cm_ct) on the digits, started from the teacher.

    distilljax train --config=configs/digits/cm_ct.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 91 and 129 s on 2 shared cores.
Expected: Frechet distance 2.44, 2.19, 2.34 (seed 0) and 1.90, 1.64, 1.83 (seed 1) times
the teacher's at 1, 2, 4 steps, accuracy at least 0.993, recall at least 0.69.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "cm_ct",
        {
            "segments": "RootSegments(1800, 2, 30)",
            "grid": "EvenGrid()",
            "target_decay": 0.0,
            "init": "teacher",
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
    )
