"""Latent consistency (lcm) of the digits teacher, guided by drawn scales.

    distilljax train --config=configs/digits/lcm.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 154 s on 2 shared cores.
Expected: Frechet distance 4.84, 6.38, 8.64 (one seed) times the teacher's at 1, 2, 4
steps, accuracy at least 1.000, recall at least 0.44.
Reproduces: no paper's row. Guidance is off: the teacher knows no null class, since it
was trained without dropping labels. Scales drawn from 1 to 2 against it ended at 4.8,
6.4, 8.6.
"""

from distilljax.cards import digits_card


def get_config():
    return digits_card(
        "lcm",
        {
            "segments": 20,
            "guidance": 1.0,
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
