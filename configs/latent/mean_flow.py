"""MeanFlow on ImageNet-256 latents: DiT-B/2, 130 M parameters.

    distilljax train --config=configs/latent/mean_flow.py

Data: data/imagenet256_latents.npz with x0 [N, 32, 32, 4] of about unit variance
and labels cond; with mean_flow.py:records ArrayRecord in data/imagenet256_latents.
Recipe: the release of MeanFlow, from data alone; `releases.MEAN_FLOW_IMAGENET256` holds
every number and its source.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import pod_card

from distilljax import releases


def get_config(source="npz"):
    return pod_card(
        "latent", releases.MEAN_FLOW_IMAGENET256, source=source, second_time=True
    )
