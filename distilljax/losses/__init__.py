"""Pure losses: arrays and callables in, corrections or values out.

No reduction over the batch, optimizer, EMA, sampling of data or collective inside. They
work under jit, vmap, scan, remat and on sharded meshes, and import jax and numpy only.
"""

from distilljax.losses.adversarial import (
    approximate_r1,
    discriminator_hinge,
    discriminator_nonsaturating,
    discriminator_relativistic,
    generator_hinge,
    generator_nonsaturating,
    generator_relativistic,
)
from distilljax.losses.corrections import (
    Correction,
    correct,
    from_value,
    regress,
    toward,
)
from distilljax.losses.distribution import (
    fisher,
    gap_from_eps,
    learned_weight,
    score_gap,
    split_error,
)
from distilljax.losses.divergences import (
    DIVERGENCES,
    Divergence,
    divergence_of,
    skew,
)
from distilljax.losses.trajectory import (
    consistency,
    dual_end,
    eulerian,
    exact,
    finite_difference,
    lagrangian,
    semigroup,
    two_jumps,
)

__all__ = [
    "DIVERGENCES",
    "Correction",
    "Divergence",
    "approximate_r1",
    "consistency",
    "correct",
    "discriminator_hinge",
    "discriminator_nonsaturating",
    "discriminator_relativistic",
    "divergence_of",
    "dual_end",
    "eulerian",
    "exact",
    "finite_difference",
    "fisher",
    "from_value",
    "gap_from_eps",
    "generator_hinge",
    "generator_nonsaturating",
    "generator_relativistic",
    "lagrangian",
    "learned_weight",
    "regress",
    "score_gap",
    "semigroup",
    "skew",
    "split_error",
    "toward",
    "two_jumps",
]

# Floors that modules here may import.
IMPORTS = ("runtime", "diffusion")
