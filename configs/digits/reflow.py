"""One round of rectified flow on pairs of the digits teacher.

    distilljax train --config=configs/digits/reflow.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256 with 16 teacher evaluations, 133 s on 2
shared cores.
Expected: Frechet distance 1.71, 1.51, 1.40 (one seed) times the teacher's at 1, 2, 4
steps, accuracy at least 0.997, recall at least 0.76.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "reflow",
        {"substeps": 8},
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
