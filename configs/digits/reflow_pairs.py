"""One round of rectified flow on pairs that the digits teacher made beforehand.

    distilljax pairs --run=runs/digits/teacher --count=65536 --out=runs/digits/pairs
    distilljax train --config=configs/digits/reflow_pairs.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, beside 50 teacher evaluations a pair;
not measured.
Expected: not measured.
Reproduces: no paper's row.
"""  # noqa: E501

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "reflow",
        {"online": False},
        source={
            "name": "pairs",
            "path": "runs/digits/pairs",
            "sample_shape": (8, 8, 1),
            "num_classes": 10,
        },
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
