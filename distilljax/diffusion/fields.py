"""Fields: functions of ``(x, t)`` with parameters and condition bound.

A field is a denoiser, velocity, score, ... of one path. The functions here map fields
to
fields: guidance, change of prediction kind, change of path, experts by time.

Guidance has one convention, ``null + w (cond - null)``, off at ``w = 1``. Papers that
write ``cond + w' (cond - null)`` mean ``w = 1 + w'``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax.diffusion.paths import Path, Time, expand
from distilljax.diffusion.predictions import (
    Prediction,
    carry,
    convert,
    decompose,
    kind_of,
    recompose,
)

Array = jax.Array
Field = Callable[[Array, Time], Array]


def guide(
    cond: Array,
    null: Array,
    scale: Time,
    *,
    rescale: float = 0.0,
    max_norm: float | None = None,
) -> Array:
    """Guided prediction ``null + w (cond - null)``.

    Serves classifier-free guidance (``null`` from the null condition) and autoguidance
    (``null`` from a weaker model).

    Args:
      cond: prediction to move toward, ``[B, ...]``.
      null: prediction to move away from, shape of ``cond``.
      scale: ``w``, scalar or ``[B]``; 1 is off.
      rescale: ``phi`` in [0, 1]; blends in the guided prediction rescaled to the
        per-sample standard deviation of ``cond``.
      max_norm: caps the per-sample L2 norm of ``cond - null`` in the part beyond
        ``cond`` (velocity normalisation of Dual-End Consistency, 2026).

    Returns:
      The guided prediction, shape of ``cond``.

    References:
      Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598.
      Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, 2024,
        arXiv:2305.08891 (rescale).
      Karras et al., Guiding a Diffusion Model with a Bad Version of Itself, 2024,
        arXiv:2406.02507 (autoguidance).
    """
    axes = tuple(range(1, cond.ndim))
    extra = expand(scale, cond) - 1.0
    gap = cond - null
    if max_norm is not None:
        norm = jnp.sqrt(jnp.sum(gap**2, axis=axes, keepdims=True))
        gap = gap * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
    out = cond + extra * gap
    if rescale:
        std = jnp.std(out, axis=axes, keepdims=True)
        ratio = jnp.std(cond, axis=axes, keepdims=True) / jnp.maximum(std, 1e-12)
        out = out * (rescale * ratio + (1.0 - rescale))
    return out


def guided(
    cond: Field,
    null: Field,
    scale: Time,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    max_norm: float | None = None,
) -> Field:
    """Field form of `guide`, optionally only inside a time interval.

    Args:
      cond: field to move toward.
      null: field to move away from; not evaluated when ``scale`` is the number 1.
      scale: ``w``, scalar or ``[B]``; 1 is off.
      interval: ``(low, high)`` in the path's clock; guidance is off outside.
      rescale: see `guide`.
      max_norm: see `guide`.

    Returns:
      The guided field.

    References:
      Kynkaanniemi et al., Applying Guidance in a Limited Interval, 2024,
        arXiv:2404.07724.
    """
    if isinstance(scale, (int, float)) and scale == 1:
        return cond
    if interval is not None and not interval[0] <= interval[1]:
        raise ValueError(f"interval must be (low, high) with low <= high: {interval}")

    def field(x: Array, t: Time) -> Array:
        w = jnp.asarray(scale)
        if interval is not None:
            now = jnp.asarray(t)
            w = jnp.where((now >= interval[0]) & (now <= interval[1]), w, 1.0)
        return guide(cond(x, t), null(x, t), w, rescale=rescale, max_norm=max_norm)

    return field


def switch_by_time(low: Field, high: Field, boundary: float) -> Field:
    """Expert ``high`` for ``t >= boundary``, else ``low``; both are evaluated."""

    def field(x: Array, t: Time) -> Array:
        return jnp.where(expand(t, x) >= boundary, high(x, t), low(x, t))

    return field


def converted(
    field: Field,
    path: Path,
    source: str | Prediction,
    target: str | Prediction,
    y: Array | None = None,
) -> Field:
    """A field of kind ``source`` as a field of kind ``target`` on the same path."""
    source, target = kind_of(source), kind_of(target)
    if source is target:
        return field

    def converted_field(x: Array, t: Time) -> Array:
        return convert(path, field(x, t), x, t, source, target, y)

    return converted_field


def viewed(
    field: Field,
    path: Path,
    kind: str | Prediction,
    *,
    on: Path,
    as_kind: str | Prediction | None = None,
) -> Field:
    """A field trained on one path, seen on another.

    Args:
      field: predicts ``kind`` on ``path``.
      path: path of the field.
      kind: kind of the field.
      on: path on which the result is called.
      as_kind: kind of the result; default the same.

    Returns:
      A field of ``on``. Its denoiser equals that of ``field`` at the matched point.
    """
    kind = kind_of(kind)
    target = kind if as_kind is None else kind_of(as_kind)
    if path == on:
        return converted(field, path, kind, target)

    def viewed_field(x: Array, t: Time) -> Array:
        x_own, t_own = carry(on, path, x, t)
        out = field(x_own, t_own)
        return recompose(on, target, *decompose(path, kind, out, x_own, t_own), t)

    return viewed_field
