"""Normalisations without statistics that run, computed in at least float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """``(x - mean) / std`` over the last axis, in the dtype of ``x``."""
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)


def rms_norm(x: Array, eps: float = 1e-6) -> Array:
    """``x / rms`` over the last axis, in the dtype of ``x``."""
    wide = _wide(x)
    scale = jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


def pixel_norm(x: Array) -> Array:
    """`rms_norm` with the constant 1e-8 of sCM's adaptive double normalisation."""
    return rms_norm(x, 1e-8)


def group_norm(x: Array, groups: int, eps: float = 1e-5) -> Array:
    """``(x - mean) / std`` over the inner axes and the channels of each group.

    Args:
      x: ``[B, ..., C]``.
      groups: a divisor of ``C``.
      eps: added to the variance.
    """
    wide = _wide(x).reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    axes = (*range(1, x.ndim - 1), x.ndim)
    centred = wide - wide.mean(axes, keepdims=True)
    variance = (centred * centred).mean(axes, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).reshape(x.shape).astype(x.dtype)
