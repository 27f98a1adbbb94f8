"""Align Your Flow (Eulerian) distillation of the digits teacher.

    distilljax train --config=configs/digits/ayf_emd.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 88 and 104 s on 2 shared cores.
Expected: Frechet distance 1.56, 1.33, 1.24 (seed 0) and 1.61, 1.28, 1.24 (seed 1) times
the teacher's at 1, 2, 4 steps, accuracy at least 0.996, recall at least 0.75.
Reproduces: no paper's row. The law is `mean_flow`'s: with Interval(LogitNormal(0.0,
1.5)) it ended at 5.9, 7.0, 10.0, and at 17, 27, 31 without the tangent's normalisation
too. Which part of the law matters has not been tested.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "ayf_emd",
        {
            "law": "Pair(LogitNormal(-0.6, 1.6), 0.15, 0.6, 0.0)",
            "warmup": "Ramp(300, 0.0, 0.99)",
        },
        second_time=True,
        cycles=1800,
        batch_size=256,
        student={
            "optimizer": "adamw",
            "lr": 5e-4,
            "betas": (0.9, 0.95),
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
    )
