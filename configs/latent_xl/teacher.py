"""Flow matching on ImageNet-256 latents: DiT-XL/2, 675 M parameters.

    distilljax train --config=configs/latent_xl/teacher.py

Data: data/imagenet256_latents.npz with x0 [N, 32, 32, 4] of about unit variance
and labels cond.
Parameters are split over the 16 chips (fsdp), the teacher is held in bfloat16.
Recipe: the release of SiT; `releases.SIT_IMAGENET256` holds every number and its
source.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import pod_card

from distilljax import releases


def get_config():
    return pod_card("latent_xl", releases.SIT_IMAGENET256)
