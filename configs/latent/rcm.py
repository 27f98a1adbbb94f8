"""rCM on ImageNet-256 latents: DiT-B/2, 130 M parameters.

    distilljax train --config=configs/latent/rcm.py --teacher=runs/latent/teacher

Data: data/imagenet256_latents.npz with x0 [N, 32, 32, 4] of about unit variance
and labels cond; with rcm.py:records ArrayRecord in data/imagenet256_latents.
Recipe: the release's for video, since none of images was released; `releases.RCM_WAN`
holds every number and its source.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import pod_card

from distilljax import releases


def get_config(source="npz"):
    return pod_card("latent", releases.RCM_WAN, source=source)
