"""TSD-SR: digits restored from their 4x4 means in one step, by adapters on one base.

    distilljax train --config=configs/digits/tsd_sr.py --teacher=runs/digits/restoration

The teacher is a run of configs/digits/restoration_teacher.py. Student and fake score
are its frozen network plus low-rank adapters. The student starts from the degraded
image, enlarged, in place of noise; ``python examples/restoration.py`` judges and draws.
Hardware: 2 CPU cores. Cost: 600 cycles of 128, 66 and 90 s on 2 shared cores.
Expected: on held-out digits at 1 step 20.2 dB, Frechet distance to the sharp ones 1.01
and 1.02 times that of the teacher's 50 evaluations (two seeds) and 95.5 % of the
classes recognised. Before training the network from the degraded image has 18.4 dB and
twice the distance; one Euler step of the teacher from noise 20.2 dB and 1.16 times.
Reproduces: no paper's row. What the score gaps add to the regression on the sharp image
has not been measured apart.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "tsd_sr",
        {"start": "degraded", "critic_law": "Uniform()"},
        source="degraded_digits",
        network={"image_channels": 1},
        lora={"roles": ("student", "fake_score"), "rank": 16},
        cycles=600,
        batch_size=128,
        student_lora={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
        fake_score_lora={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
        },
    )
