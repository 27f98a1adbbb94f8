"""Flow-matching teacher that restores digits from their means over blocks.

    distilljax train --config=configs/digits/restoration_teacher.py

Hardware: 2 CPU cores. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.cards import digits_card


def get_config():
    return digits_card(
        "flow_matching",
        {"law": "Mixture(((0.7, LogitNormal(0.0, 1.0)), (0.3, Uniform())))"},
        source="degraded_digits",
        network={"image_channels": 1},
        cycles=2500,
        batch_size=256,
        student={
            "optimizer": "adamw",
            "lr": 2e-3,
            "weight_decay": 0.01,
            "schedule": {"name": "warmup_cosine", "warmup": 200},
            "clip": 1.0,
            "ema": 0.998,
        },
    )
