"""One-step student (diff_instruct) of the teacher of MNIST digits beside it.

    distilljax train --config=configs/mnist/diff_instruct.py --teacher=runs/mnist/teacher

Hardware: 1 CPU core. Cost: 500 cycles of 96, 150 s of CPU.
Expected: Frechet distance on pixels 18.2 with one evaluation (1000 samples, one seed;
precision 1.00, recall 0.13), where the teacher has 20.0 with 50.
Reproduces: no paper's row.
"""  # noqa: E501

from distilljax import cards

# Those of configs/mnist/teacher.py.
BACKBONE = {
    "name": "mlp",
    "width": 256,
    "hidden": 512,
    "blocks": 4,
    "prediction": "x0",
    "label_std": 0.2,
}
SOURCE = {
    "name": "image_folder",
    "path": "mnist",
    "sample_shape": (28, 28, 1),
    "num_classes": 10,
}


def get_config():
    return cards.card(
        "diff_instruct",
        {
            "law": "central(0.02)",
            "critic_law": "Uniform()",
            "critic_steps": 2,
        },
        source=SOURCE,
        networks={"backbone": BACKBONE},
        cycles=500,
        batch_size=96,
        student={
            "optimizer": "adamw",
            "lr": 5e-4,
            "schedule": {"name": "warmup_cosine", "warmup": 30},
            "clip": 1.0,
            "ema": 0.98,
        },
        fake_score={
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 30},
            "clip": 1.0,
        },
    )
