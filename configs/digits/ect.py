"""Easy consistency tuning (ect) of the digits teacher, on data.

    distilljax train --config=configs/digits/ect.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, not measured.
Expected: not measured.
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
