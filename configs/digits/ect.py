"""Easy consistency tuning (ect) of the digits teacher, on data.

    distilljax train --config=configs/digits/ect.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 87 s on 2 shared cores.
Expected: Frechet distance 1.42, 1.30, 1.30 (one seed) times the teacher's at 1, 2, 4
steps, accuracy at least 0.997, recall at least 0.78.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "ect",
        {
            "gap": "Shrink(1800, 6)",
            "law": "LogNormal(0.0, 2.0)",
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
