"""Diff-Instruct of the digits teacher: one step by the integral KL divergence.

    distilljax train --config=configs/digits/diff_instruct.py --teacher=runs/digits/teacher

Data-free: the student learns from labels and the teacher alone, no image is read.
Hardware: 2 CPU cores. Cost: 1000 cycles of 130, 62 s on 2 shared cores.
Expected: Frechet distance 1.41 (one seed) times the teacher's at 1 step, accuracy at
least 0.998, recall at least 0.75; from pure noise it ended at 1.51 and 1.53.
Reproduces: no paper's row.
"""  # noqa: E501

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "diff_instruct",
        {
            "law": "central(0.02)",
            "critic_law": "Uniform()",
            "critic_steps": 2,
        },
        source={"name": "labels", "num_classes": 10, "sample_shape": (8, 8, 1)},
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
