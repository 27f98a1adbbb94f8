"""sCM on CIFAR-10: UNet of the size of EDM's, 60 M parameters.

    distilljax train --config=configs/cifar/scm.py --teacher=runs/cifar/teacher

Data: data/cifar10.npz with x0 [50000, 32, 32, 3] in [-1, 1] and labels cond.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.cards import npz_card


def get_config():
    return npz_card(
        "scm",
        {"law": "LogNormal(-1.0, 1.4)", "warmup": "Ramp(10000)"},
        data="data/cifar10.npz",
        sample_shape=(32, 32, 3),
        num_classes=10,
        images=True,
        network={"name": "unet", "dropout": 0.0, "dtype": "bfloat16"},
        cycles=400_000,
        batch_size=512,
        mesh={"data": 16},
        student={
            "optimizer": "adamw",
            "lr": 1e-4,
            "schedule": {"name": "warmup_cosine", "warmup": 1000},
            "clip": 1.0,
            "ema": 0.9999,
        },
    )
