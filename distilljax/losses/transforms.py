"""Transforms of corrections: functions Correction -> Correction that chain.

Everything that a transform needs is its argument; nothing hides in a correction.
Warm-up is no transform: it scales only a part of the tangent, see `losses.eulerian`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from distilljax.diffusion.paths import expand
from distilljax.losses.corrections import Correction, leading_axes
from distilljax.runtime import words

Array = jax.Array
sg = jax.lax.stop_gradient


def _axes(c: Correction) -> tuple[int, ...]:
    return tuple(range(leading_axes(c), c.output.ndim))


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@words.value
def l2_norm(x: Array, axes: tuple[int, ...]) -> Array:
    """Euclidean norm over ``axes``, kept."""
    return jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))


@words.value
def rms_norm(x: Array, axes: tuple[int, ...]) -> Array:
    """Root mean square over ``axes``, kept."""
    return jnp.sqrt(jnp.mean(x**2, axis=axes, keepdims=True))


@words.partial
def normalize_tangent(
    c: Correction,
    constant: float = 0.1,
    norm: Callable[[Array, tuple[int, ...]], Array] = l2_norm,
) -> Correction:
    """``g / (|g| + constant)`` per sample.

    Args:
      c: correction.
      constant: positive; 0.1 in sCM.
      norm: `l2_norm` (sCM, Sana, rCM) or `rms_norm` (FastGen's default); the learning
        rate that suits differs by ``sqrt(D)``.

    Returns:
      The correction with direction of norm below 1.

    References:
      Lu and Song, sCM, 2024, arXiv:2410.11081, section 4.1 (tangent normalization).
    """
    wide = _wide(c.direction)
    return c._replace(direction=wide / (norm(wide, _axes(c)) + constant))


@words.partial
def clip(c: Correction, limit: float = 1.0) -> Correction:
    """Clips every element of the direction to ``[-limit, limit]``."""
    return c._replace(direction=jnp.clip(c.direction, -limit, limit))


def scale(c: Correction, factor: Array | float) -> Correction:
    """Multiplies the weight by ``factor`` (scalar or leading axes of the output)."""
    factor = jnp.asarray(factor)
    if factor.ndim > c.weight.ndim:
        return c._replace(weight=expand(c.weight, factor) * factor)
    return c._replace(weight=c.weight * expand(factor, c.weight))


def adaptive_l2(c: Correction, p: float = 1.0, eps: float = 1e-2) -> Correction:
    """Weight ``1 / (S + eps)^p`` with ``S`` the squared error summed per sample.

    With `metrics.sum_squares` this is MeanFlow's ``S / sg[(S + eps)^p]``.

    Args:
      c: correction.
      p: power in ``[0, 1]``; 0 is plain L2, 0.5 behaves like pseudo-Huber.
      eps: positive.

    Returns:
      The reweighted correction.

    References:
      Geng et al., Mean Flows for One-step Generative Modeling, 2025, arXiv:2505.13447,
        eq. 22.
    """
    squared = jnp.sum(_wide(c.direction) ** 2, axis=_axes(c))
    return scale(c, sg((squared + eps) ** -p))


def error_size(
    x: Array, reference: Array, axes: tuple[int, ...], floor: float | None = None
) -> Array:
    """``max(mean |x - reference|, floor)`` over axes, which are kept; a constant.

    The normaliser of DMD. A mean over few elements is often near 0, and the quotient
    then of any size: the chance of a mean below ``e`` falls like ``e^n``, and so does
    the need of a floor. On the bench's mixtures 0.3 halves the distance of one step
    under SiD in 2 dimensions (3.9 and 2.1), while in 64 nothing between 1e-5 and 0.3
    matters.

    Args:
      x: samples.
      reference: the real denoiser's prediction, shape of ``x``.
      axes: the axes of a sample, of ``n`` elements.
      floor: smallest size; None for ``1.2 / n^2``, at least 1e-5 (the clip of the
        public SiD and rCM codes), which is that of 347 elements and more.

    Returns:
      The size, at least float32.
    """
    if floor is None:
        floor = max(1.2 / math.prod(x.shape[a] for a in axes) ** 2, 1e-5)
    error = _wide(jnp.abs(sg(x) - sg(reference)))
    return jnp.maximum(jnp.mean(error, axis=axes, keepdims=True), floor)


def normalize_by_error(
    c: Correction, *, reference: Array, floor: float | None = None
) -> Correction:
    """Direction over ``mean |output - reference|`` per sample (DMD's normaliser).

    Args:
      c: correction of a sample.
      reference: the real denoiser's prediction after guidance, shape of the output.
      floor: smallest divisor, see `error_size`.

    Returns:
      The rescaled correction; zero where the quotient is not finite.

    References:
      Yin et al., One-step Diffusion with Distribution Matching Distillation, 2023,
        arXiv:2311.18828, eq. 8.
    """
    size = error_size(c.output, reference, _axes(c), floor)
    return c._replace(direction=jnp.nan_to_num(c.direction / size, posinf=0, neginf=0))


def density_ratio(logits: Array, low: float = 0.1, high: float = 20.0) -> Array:
    """``exp(logit)``, the density ratio real over fake, inside ``[low, high]``.

    Args:
      logits: discriminator logits, positive = real.
      low: smallest ratio.
      high: largest ratio.

    Returns:
      The ratio in at least float32, shape of ``logits``; constant.
    """
    return jnp.clip(jnp.exp(jnp.clip(_wide(sg(logits)), -10.0, 10.0)), low, high)


def weight_by_density_ratio(
    c: Correction,
    logits: Array,
    h: Callable[[Array], Array],
    expected: Array | float = 1.0,
    *,
    clip: tuple[float, float] = (0.1, 20.0),
) -> Correction:
    """Weight ``h(r) / mean h(r)`` with ``r = exp(logit)`` the ratio real over fake.

    Args:
      c: correction of a sample.
      logits: discriminator logits ``[B]`` (positive = real) at the re-noised sample.
      h: ``r^2 f''(r)`` of the f-divergence, see `losses.divergences`.
      expected: running mean of the ratio at the noise level of each sample, ``[B]``,
        which divides it.
      clip: smallest and largest ratio.

    Returns:
      The reweighted correction; couples the samples of a batch through the mean.

    References:
      Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching,
        2025, arXiv:2502.15681, eq. 8.
    """
    weight = h(density_ratio(logits, *clip) / (sg(jnp.asarray(expected)) + 1e-6))
    return scale(c, weight / (jnp.mean(weight) + 1e-6))


def weight_by_reward(
    c: Correction,
    advantage: Array,
    *,
    bound: float = 5.0,
    strength: float = 1.0,
    base: float = 1.0,
) -> Correction:
    """Weight ``base + strength (2 rho - 1)``, ``rho = clip(A / (2 bound) + 1/2, 0,
    1)``.

    With the defaults the weight is ``2 rho``, in ``[0, 2]`` and 1 at ``A = 0``: an
    update is never turned around. ``base = 0`` is the signed form of mirrored policies
    alone, whose gradient vanishes when all rewards agree.

    Args:
      c: correction.
      advantage: normalised reward of ``output + direction``, ``[B]``.
      bound: advantage at which the weight saturates.
      strength: share of the reward.
      base: share of the correction itself.

    Returns:
      The reweighted correction.
    """
    rho = jnp.clip(sg(advantage) / (2.0 * bound) + 0.5, 0.0, 1.0)
    return scale(c, base + strength * (2.0 * rho - 1.0))


def group_normalize(c: Correction, groups: int, eps: float = 1e-4) -> Correction:
    """Centres and scales directions inside groups of consecutive samples.

    Args:
      c: correction, ``B`` divisible by ``groups``.
      groups: number of groups in the batch.
      eps: added to the standard deviation.

    Returns:
      The correction whose directions have mean 0 in every group. Couples samples.
    """
    batch = c.direction.shape[0]
    if batch % groups:
        raise ValueError(f"groups must divide the batch {batch}, got {groups}")
    spec = jax.typeof(c.direction).sharding.spec
    # Under explicit axes say that all are gathered; a group need not lie on one device.
    whole = PartitionSpec() if any(spec) else None
    grouped = jnp.reshape(
        c.direction,
        (groups, batch // groups) + c.direction.shape[1:],
        out_sharding=whole,
    )
    mean = jnp.mean(grouped, axis=1, keepdims=True)
    std = jnp.std(grouped, axis=1, keepdims=True)
    out = (grouped - mean) / (std + eps)
    out = out.reshape(c.direction.shape)
    return c._replace(direction=out if whole is None else reshard(out, spec))


def drop_nonfinite(c: Correction) -> Correction:
    """Takes samples with a non-finite direction out of the loss (weight 0)."""
    good = jnp.all(jnp.isfinite(c.direction), axis=_axes(c))
    kept = jnp.where(expand(good.astype(jnp.float32), c.output) > 0, c.direction, 0.0)
    return scale(c._replace(direction=kept), good.astype(jnp.float32))
