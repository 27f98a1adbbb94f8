"""Corrections and values that compare the student's distribution with the teacher's.

The losses take *arrays* (the two predictions), so that every stop-gradient is visible
where the networks are called and each prediction may come from its own point.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax.diffusion.paths import Path, Time, expand
from distilljax.losses.corrections import Correction, correct
from distilljax.losses.transforms import error_size

Array = jax.Array
sg = jax.lax.stop_gradient


def score_gap(
    x: Array, real: Array, fake: Array, weight: Array | None = None
) -> Correction:
    """Distribution matching: ``x`` moves along real minus fake denoiser prediction.

    At a shared re-noised point ``s_real - s_fake = alpha (D_real - D_fake) / sigma^2``,
    so the direction descends the integral KL divergence up to the scale.

    Args:
      x: student sample ``[B, ...]``, differentiable.
      real: teacher's denoiser prediction (guided) at a re-noised ``x``.
      fake: fake score's denoiser prediction at the same point.
      weight: see `Correction`.

    Returns:
      The correction of ``x``.

    Gradient flow: to ``x`` only; both predictions are stopped.

    References:
      Yin et al., DMD, 2023, arXiv:2311.18828, eq. 7.
      Luo et al., Diff-Instruct, 2023, arXiv:2305.18455.
    """
    return correct(x, sg(real) - sg(fake), weight)


def gap_from_eps(eps_a: Array, eps_b: Array, path: Path, t: Time) -> Array:
    """Denoiser-form direction of an eps gap at the *same point*: roles swap.

    ``D(a) - D(b) = (sigma/alpha)(eps(b) - eps(a))``, since
    ``D = (x_t - sigma eps)/alpha``. A method that descends along
    ``g = eps(a) - eps(b)`` moves ``x`` along the result with ``a`` the real network.

    Args:
      eps_a: prediction of the network to move toward, ``[B, ...]``.
      eps_b: prediction of the network to move away from, same point and shape.
      path: path of ``t``.
      t: time, ``alpha(t) > 0``.

    Returns:
      ``D(a) - D(b)``.
    """
    t = expand(t, eps_a)
    return path.sigma(t) / path.alpha(t) * (eps_b - eps_a)


def split_error(
    denoised_a: Array,
    denoised_b: Array,
    eps_a: Array,
    eps_b: Array,
    path: Path,
    t: Time,
) -> tuple[Array, Array]:
    """The two complementary parts of ``x_hat - x_ref`` seen by one denoiser.

    For two *different points* noised with the same ``eps`` at the same ``t`` (a from
    ``x_hat``, b from ``x_ref``) there is no swap of roles:

        x_hat - x_ref = (D(a) - D(b)) + (sigma/alpha)(eps(a) - eps(b)).

    The eps part (TSD-SR, TAD-SR) holds the directions finer than the noise, the D part
    (CTMSR) the coarser ones. To pull ``x_hat`` toward ``x_ref`` move along minus
    either.

    Args:
      denoised_a: ``D`` at the noised output, ``[B, ...]``.
      denoised_b: ``D`` at the noised reference.
      eps_a: eps prediction at the noised output.
      eps_b: eps prediction at the noised reference.
      path: path of ``t``.
      t: time, ``alpha(t) > 0``.

    Returns:
      ``(D part, eps part)``; they add up to ``x_hat - x_ref``.
    """
    t = expand(t, eps_a)
    return denoised_a - denoised_b, path.sigma(t) / path.alpha(t) * (eps_a - eps_b)


def fisher(
    x: Array,
    real: Array,
    fake: Array,
    *,
    alpha: float = 1.2,
    floor: float | None = None,
) -> Array:
    """Score identity distillation, mean over the elements of a sample.

    ``<D_real - D_fake, (D_real - x) - alpha (D_real - D_fake)> / (n norm)`` with
    ``norm = max(mean |x - D_real|, floor)``. At the exact fake score ``alpha = 1/2``
    has the gradient of the Fisher divergence and ``alpha = 1`` that of score implicit
    matching. The value is no measure of progress and may be negative.

    Args:
      x: student sample ``[B, ...]``, differentiable.
      real: teacher's prediction at the re-noised ``x``, differentiable in its input.
      fake: fake score's prediction there, differentiable in its input.
      alpha: SiD's coefficient; 1.2 by default in the paper.
      floor: smallest normaliser, see `transforms.error_size`.

    Returns:
      Values ``[B]``.

    Gradient flow: to ``x`` directly and through the inputs of *both* networks; only the
    normaliser is stopped. Do not wrap the networks in stop_gradient.

    References:
      Zhou et al., Score identity Distillation, 2024, arXiv:2404.04057, eq. 23.
      Luo et al., One-Step Diffusion Distillation through Score Implicit Matching, 2024,
        arXiv:2410.16794.
    """
    axes = tuple(range(1, x.ndim))
    gap = real - fake
    inner = gap * ((real - x) - alpha * gap)
    return jnp.mean(inner / error_size(x, real, axes, floor), axis=axes)


def learned_weight(
    values: Array, log_weight: Array, *, cap: float | None = None
) -> Array:
    """Uncertainty weighting ``e^w L - w`` (sCM eq. 8; codes write ``logvar = -w``).

    At its optimum ``e^w = 1 / E[L | t]``, which takes out any factor of ``L`` that
    depends on the time alone. With normalised tangents and sCM's prior ``1/sigma`` that
    is ``w = log(2 D sigma)``, 8.7 at ``D = 3072`` and ``sigma = 1``. In few dimensions
    the residual of a tangent is small where the student is right, and ``w`` runs away.

    Args:
      values: losses ``[B]``.
      log_weight: ``w(t)``, ``[B]``, from a network trained with the student.
      cap: largest ``|w|``, beyond which the gradient vanishes and nothing cancels any
        more; None for none, as in the paper and the public codes.

    Returns:
      Values ``[B]``.

    Gradient flow: to ``values`` and ``log_weight``.
    """
    w = log_weight.astype(jnp.promote_types(log_weight.dtype, jnp.float32))
    w = w if cap is None else jnp.clip(w, -cap, cap)
    return jnp.exp(w) * values - w
