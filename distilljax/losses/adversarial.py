"""GAN losses on logits ``[B]`` or ``[B, ...]``, positive = real.

Logits of several heads and positions are averaged per sample, after the nonlinearity.

| family | discriminator | generator |
|---|---|---|
| non-saturating | softplus(fake) + softplus(-real) | softplus(-fake) |
| hinge | relu(1 + fake) + relu(1 - real) | -fake |
| relativistic | softplus(fake - real) | softplus(real - fake) |

References:
  Goodfellow et al., Generative Adversarial Networks, 2014, arXiv:1406.2661.
  Jolicoeur-Martineau, The relativistic discriminator, 2018, arXiv:1807.00734.
  Lin et al., Diffusion Adversarial Post-Training, 2025, arXiv:2501.08316
    (approximate R1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def _per_sample(values: Array) -> Array:
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def discriminator_nonsaturating(real: Array, fake: Array) -> Array:
    """``softplus(fake) + softplus(-real)``, values ``[B]``."""
    return _per_sample(jax.nn.softplus(fake) + jax.nn.softplus(-real))


def generator_nonsaturating(fake: Array) -> Array:
    """``softplus(-fake)``, values ``[B]``."""
    return _per_sample(jax.nn.softplus(-fake))


def discriminator_hinge(real: Array, fake: Array) -> Array:
    """``relu(1 + fake) + relu(1 - real)``, values ``[B]``."""
    return _per_sample(jax.nn.relu(1.0 + fake) + jax.nn.relu(1.0 - real))


def generator_hinge(fake: Array) -> Array:
    """``-fake``, values ``[B]``."""
    return _per_sample(-fake)


def discriminator_relativistic(real: Array, fake: Array) -> Array:
    """``softplus(fake - real)``, values ``[B]``."""
    return _per_sample(jax.nn.softplus(fake - real))


def generator_relativistic(real: Array, fake: Array) -> Array:
    """``softplus(real - fake)``, values ``[B]``."""
    return _per_sample(jax.nn.softplus(real - fake))


def approximate_r1(logits: Array, perturbed: Array, std: float) -> Array:
    """``((l(x + std n) - l(x)) / std)^2``: estimates ``|grad l|^2`` with no second
    order.

    Args:
      logits: at the (re-noised) sample, ``[B]`` or ``[B, ...]``.
      perturbed: at the sample plus ``std`` times standard normal noise.
      std: perturbation, positive.

    Returns:
      Values ``[B]``.
    """
    return _per_sample(((perturbed - logits) / std) ** 2)
