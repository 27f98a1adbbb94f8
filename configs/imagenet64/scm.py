"""sCM on ImageNet, 64 x 64 pixels: DiT-B/4, 130 M parameters.

    distilljax train --config=configs/imagenet64/scm.py --teacher=runs/imagenet64/teacher

Data: as teacher.py.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""  # noqa: E501

from distilljax.recipes import pod_card


def get_config(source="tfds"):
    return pod_card(
        "imagenet64",
        "scm",
        {"law": "LogNormal(-1.0, 1.4)", "warmup": "Ramp(10000)"},
        lr=1e-4,
        source=source,
    )
