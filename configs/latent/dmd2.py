"""DMD2 on ImageNet-256 latents: DiT-B/2, 130 M parameters.

    distilljax train --config=configs/latent/dmd2.py --teacher=runs/latent/teacher

Data: data/imagenet256_latents.npz with x0 [N, 32, 32, 4] of about unit variance
and labels cond; with dmd2.py:records ArrayRecord in data/imagenet256_latents.
Recipe: the release's for ImageNet-64, for a student of 1, 2 and 4 steps;
`releases.DMD2_IMAGENET64` holds every number and its source.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.recipes import pod_card

from distilljax import releases


def get_config(source="npz"):
    return pod_card(
        "latent",
        releases.DMD2_IMAGENET64,
        {"steps": (1, 2, 4)},
        source=source,
        network={"path": "linear()", "prediction": "velocity"},
    )
