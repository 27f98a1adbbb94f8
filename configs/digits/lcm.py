"""Latent consistency (lcm) of the digits teacher, guided by drawn scales.

    distilljax train --config=configs/digits/lcm.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "lcm",
        {
            "segments": 20,
            "guidance": (1.0, 2.0),
            "target_decay": 0.9,
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
