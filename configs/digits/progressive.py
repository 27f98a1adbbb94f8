"""Progressive distillation of the digits teacher, from 32 steps to 1.

    distilljax train --config=configs/digits/progressive.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 5 rounds of 400 cycles of 256; not measured.
Expected: not measured.
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
