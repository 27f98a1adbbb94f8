"""Policies that imitate the digits teacher.

    distilljax train --config=configs/digits/pi_flow.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1800 cycles of 256 with two teacher evaluations, 396 s on 2
shared cores.
Expected: Frechet distance 1.27 (one seed) times the teacher's at 1 step, accuracy at
least 0.998, recall at least 0.77; measured when the policy's local velocity, not yet
its mean, stood against the teacher's while that moved the state.
Reproduces: no paper's row. The policy is trained for one step; at 2 and 4, whose later
start times nothing trains, it stands at 9.2 and 12.2. Sampling follows it in 128
substeps, which cost more than the network here.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "pi_flow",
        {"teacher_ratio": "Ramp(500, 1.0, 0.0)", "substeps": 16},
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
