"""EDM on ImageNet, 64 x 64 pixels: DiT-B/4, 130 M parameters.

    distilljax train --config=configs/imagenet64/teacher.py

Data: TFDS's imagenet2012, prepared as array_record; with teacher.py:image_folder
data/imagenet/train/<class>/, with :records data/imagenet64. Decoding full images costs
more than the step: write them once with distilljax convert and train on :records.
Recipe: the release of EDM; `releases.EDM_IMAGENET64` holds every number and its source.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import pod_card

from distilljax import releases


def get_config(source="tfds"):
    return pod_card("imagenet64", releases.EDM_IMAGENET64, source=source)
