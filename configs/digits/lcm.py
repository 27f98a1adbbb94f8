"""Latent consistency (lcm) of the digits teacher, guided by drawn scales.

    distilljax train --config=configs/digits/lcm.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 54 and 101 s on 2 shared cores.
Expected: Frechet distance 1.68, 1.64, 1.71 (seed 0) and 1.70, 1.66, 1.72 (seed 1) times
the teacher's at 1, 2, 4 steps, accuracy at least 0.998, recall at least 0.62.
Reproduces: no paper's row. Guidance is off: the teacher was trained without dropping
labels, so that its null class is untrained. Scales drawn from 1 to 2 ended at 4.8, 6.4,
8.6.
"""

from distilljax.recipes import digits_card


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
