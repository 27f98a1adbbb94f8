"""DMD of the digits teacher: one step, with noise-image pairs made in training.

    distilljax train --config=configs/digits/dmd.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 1000 cycles of 130, 98 and 155 s on 2 shared cores.
Expected: Frechet distance 1.48 and 1.50 times the teacher's at 1 step, accuracy at
least 0.998, recall at least 0.72.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "dmd",
        {
            "pairs": "TeacherTrajectory(segments=1, substeps=8, "
            "solver=DPMSolverPP2M())",
            "critic_steps": 2,
            "floor": 0.05,
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
