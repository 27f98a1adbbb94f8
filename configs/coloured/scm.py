"""Continuous-time consistency distillation (scm) of the teacher of coloured digits.

    distilljax train --config=configs/coloured/scm.py --teacher=runs/coloured/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256, about 1 minute.
Expected: Frechet distance on pixels 1.06, 1.01, 0.96 at 1, 2, 4 steps, accuracy of the
samples' classes at least 0.98; the teacher has 0.86 at 50.
Reproduces: no paper's row; the settings are those of configs/digits/scm.py.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "scm",
        {
            "law": "LogNormal(0.0, 1.4)",
            "warmup": "Ramp(400)",
            "tangent": None,
            "learned_weight": False,
        },
        source="coloured_digits",
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
