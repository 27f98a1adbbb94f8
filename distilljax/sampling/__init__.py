"""Batches of samples of a student or teacher, and edits of given pictures.

The sampler of one state and its rules between steps are those of
``distilljax.diffusion.sampler``.
"""

from distilljax.diffusion.sampler import (
    SDE,
    Consistency,
    Deterministic,
    Gamma,
    Hooks,
    HopFirst,
    Renoise,
    sample,
    sample_counted,
)

__all__ = [
    "SDE",
    "Consistency",
    "Deterministic",
    "Gamma",
    "HopFirst",
    "Hooks",
    "Renoise",
    "sample",
    "sample_counted",
]

# Floors that modules here may import.
IMPORTS = ("runtime", "diffusion", "core", "training")
