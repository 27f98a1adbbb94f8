"""TSD-SR's score gaps on the digits teacher, as one class-conditional step.

    distilljax train --config=configs/digits/tsd_sr.py --teacher=runs/digits/teacher

The digits have no degraded twin: this card runs the method, and has little to restore.
Hardware: 2 CPU cores. Cost: 1000 cycles of 130, not timed.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.cards import digits_card


def get_config():
    return digits_card(
        "tsd_sr",
        {
            "share": 0.98,
            "regression_weight": 0.01,
            "critic_steps": 2,
        },
        cycles=1000,
        batch_size=130,
        student={
            "optimizer": "adamw",
            "lr": 5e-4,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
        fake_score={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
        },
    )
