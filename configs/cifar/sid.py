"""SiD on CIFAR-10: UNet of the size of EDM's, 60 M parameters.

    distilljax train --config=configs/cifar/sid.py --teacher=runs/cifar/teacher

Data: data/cifar10.npz with x0 [50000, 32, 32, 3] in [-1, 1] and labels cond; with
sid.py:tfds TFDS's cifar10, with :records data/cifar10.
Recipe: the release of SiD; `releases.SID_CIFAR10` holds every number and its source.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import pod_card

from distilljax import releases


def get_config(source="npz"):
    return pod_card("cifar", releases.SID_CIFAR10, source=source)
