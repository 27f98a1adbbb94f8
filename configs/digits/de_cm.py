"""Dual-End Consistency (de_cm) of the digits teacher.

    distilljax train --config=configs/digits/de_cm.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, 158 s on 2 shared cores.
Expected: Frechet distance 1.78, 1.66, 1.95 (one seed) times the teacher's at 1, 2, 4
steps, accuracy at least 0.991, recall at least 0.73. With hops that are not normalised
(``"tangent": None``) 1.57, 1.63, 1.57, but 2.6, 3.9, 3.7 in the bench's shorter run,
where these end at 2.1, 2.5, 1.7.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "de_cm",
        {
            "law": "LogitNormal(0.0, 1.4)",
            "start": "Ramp(900, 0.9, 1.0)",
            "warmup": "Ramp(300)",
        },
        second_time=True,
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
