"""rCM on ImageNet-256 latents: DiT-B/2, 130 M parameters.

    distilljax train --config=configs/latent/rcm.py --teacher=runs/latent/teacher

Data: data/imagenet256_latents.npz with x0 [N, 32, 32, 4] of about unit variance
and labels cond.
Hardware: v5e:4x4, 16 chips of 16 GiB. Cost: not measured.
Expected: not measured.
Reproduces: no paper's row.
"""

from distilljax.cards import npz_card


def get_config():
    return npz_card(
        "rcm",
        {"warmup": 10000, "critic_steps": 4},
        data="data/imagenet256_latents.npz",
        sample_shape=(32, 32, 4),
        num_classes=1000,
        images=False,
        network={"name": "dit", "size": "B", "dtype": "bfloat16", "remat": "dots"},
        cycles=400_000,
        batch_size=256,
        mesh={"data": 16},
        student={
            "optimizer": "adamw",
            "lr": 1e-5,
            "schedule": {"name": "warmup_cosine", "warmup": 1000},
            "clip": 1.0,
            "ema": 0.9999,
        },
        fake_score={"optimizer": "adamw", "lr": 1e-5, "clip": 1.0},
    )
