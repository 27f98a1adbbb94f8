"""sCM on ImageNet, 64 x 64 pixels: DiT-B/4, 130 M parameters.

    distilljax train --config=configs/imagenet64/scm.py --teacher=runs/imagenet64/teacher

Data: as teacher.py.
Recipe: FastGen's distillation by sCM; `releases.SCD_IMAGENET64` holds every number and
its source.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""  # noqa: E501

from distilljax.recipes import pod_card

from distilljax import releases


def get_config(source="tfds"):
    return pod_card("imagenet64", releases.SCD_IMAGENET64, source=source)
