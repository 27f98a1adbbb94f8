"""Distribution matching (dmd2) of the digits teacher, one student for 1, 2 and 4 steps.

    distilljax train --config=configs/digits/dmd2.py --teacher=runs/digits/teacher

Hardware: 2 CPU cores. Cost: 700 cycles on the teacher's trajectories and 300 of
matching with batch 130, about 80 s.
Expected: Frechet distance 1.38, 0.98, 0.92 (seed 0) and 1.44, 0.96, 0.99 (seed 1)
times the teacher's at 1, 2, 4 steps.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card

# Few low levels: every jump near the data adds an error that the later ones keep.
GRID = "TableGrid(((1.0,), (1.0, 0.25), (1.0, 0.9, 0.75, 0.25)))"


def get_config():
    return digits_card(
        "dmd2",
        {
            "steps": (4,),
            "grid": GRID,
            # One fake score sees the samples of all steps, so their shares settle who
            # of them comes nearest: more of the last step mends four, and costs one.
            "slots": (5, 2, 2, 4),
            "critic_steps": 2,
            "gan_weight": 0.01,
            "gan_critic_weight": 0.02,
            "gan_law": "Uniform(0.0, 0.5)",
            "floor": 0.05,
            "warm_start": 700,
            "warm_start_draw": "TeacherTrajectory(segments=4, substeps=4, "
            f"grid={GRID}, solver=DPMSolverPP2M())",
            "warm_start_weights": (2.0, 1.0, 1.0, 1.0),
        },
        cycles=1000,
        batch_size=130,
        student={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {
                "name": "warmup_cosine",
                "warmup": 50,
                "restart": 700,
                "restart_factor": 0.15,
            },
            "clip": 1.0,
            "ema": 0.99,
        },
        fake_score={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
        },
        discriminator={
            "optimizer": "adamw",
            "lr": 1e-3,
            "betas": (0.5, 0.99),
            "clip": 1.0,
        },
    )
