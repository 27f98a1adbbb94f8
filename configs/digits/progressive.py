"""Progressive distillation of the digits teacher, from 32 steps to 1.

    distilljax train --config=configs/digits/progressive.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 5 rounds of 400 cycles of 256, 120 s on 2 shared cores.
Expected: Frechet distance 1.89 (one seed) times the teacher's at 1 step, accuracy at
least 0.998, recall at least 0.68.
Reproduces: no paper's row.
"""  # noqa: E501

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "progressive",
        {"steps": (16, 8, 4, 2, 1), "round_cycles": 400},
        cycles=2000,
        batch_size=256,
        student={
            "optimizer": "adamw",
            "lr": 3e-4,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
        },
    )
