"""A bench in miniature."""

import dataclasses

from distilljax.bench import mixture


def suite(**changes):
    made = mixture(samples=256)
    return dataclasses.replace(made, pretraining=20_000, budget=6_000, **changes)
