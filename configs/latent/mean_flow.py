"""MeanFlow on ImageNet-256 latents: DiT-B/2, 130 M parameters.

    distilljax train --config=configs/latent/mean_flow.py --teacher=runs/latent/teacher

Data: data/imagenet256_latents.npz with x0 [N, 32, 32, 4] of about unit variance
and labels cond; with mean_flow.py:records ArrayRecord in data/imagenet256_latents.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import pod_card


def get_config(source="npz"):
    return pod_card(
        "latent",
        "mean_flow",
        {"law": "Pair(LogitNormal(-0.4, 1.0), 0.25)"},
        lr=1e-4,
        source=source,
        second_time=True,
    )
