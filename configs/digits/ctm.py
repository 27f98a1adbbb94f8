"""Consistency trajectories of the digits teacher.

    distilljax train --config=configs/digits/ctm.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1200 cycles of 128, 12 teacher evaluations a cycle on
average, 130 s on 2 shared cores.
Expected: Frechet distance 1.87, 1.17, 1.00 (one seed) times the teacher's at 1, 2, 4
steps, accuracy at least 0.998, recall at least 0.70.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "ctm",
        {
            "segments": 8,
            "grid": "EvenGrid()",
            "dsm_law": "LogNormal(-1.2, 1.2)",
            "target_decay": 0.95,
        },
        second_time=True,
        cycles=1200,
        batch_size=128,
        student={
            "optimizer": "adamw",
            "lr": 5e-4,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
    )
