"""Class-conditional denoiser on the digits of scikit-learn, by its x0 error.

    distilljax train --config=configs/digits/denoising.py

Hardware: 2 CPU cores. Cost: 2500 cycles of 256, 90 s on 2 shared cores.
Expected: Frechet distance 1.16 (one seed) times the teacher's with Heun at 50
evaluations, accuracy at least 0.997, recall at least 0.78.
Reproduces: no paper's row.
"""

from distilljax.recipes import digits_card


def get_config():
    return digits_card(
        "denoising",
        {
            "kind": "x0",
            "min_snr": 5.0,
            "law": "Mixture(((0.7, LogitNormal(0.0, 1.0)), (0.3, Uniform())))",
            "label_dropout": 0.1,
        },
        cycles=2500,
        batch_size=256,
        student={
            "optimizer": "adamw",
            "lr": 2e-3,
            "schedule": {"name": "warmup_cosine", "warmup": 50},
            "clip": 1.0,
            "ema": 0.99,
        },
    )
