"""sCM on CIFAR-10: UNet of the size of EDM's, 60 M parameters.

    distilljax train --config=configs/cifar/scm.py --teacher=runs/cifar/teacher

Data: data/cifar10.npz with x0 [50000, 32, 32, 3] in [-1, 1] and labels cond; with
scm.py:tfds TFDS's cifar10, with :records data/cifar10.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import pod_card


def get_config(source="npz"):
    return pod_card(
        "cifar",
        "scm",
        {"law": "LogNormal(-1.0, 1.4)", "warmup": "Ramp(10000)"},
        lr=1e-4,
        source=source,
    )
