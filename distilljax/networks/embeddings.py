"""Embeddings of times and conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distilljax.diffusion.paths import Path
from distilljax.networks.layout import rows_first

Array = jax.Array


class Frequencies(NamedTuple):
    """Geometric frequencies of a sinusoidal embedding.

    The derivative of the embedding grows with ``high``: jvp losses want it moderate
    (20 on clocks that end near 1), whatever the thousands of older networks.

    Attributes:
      low: smallest angular frequency, positive.
      high: largest angular frequency.
      count: number of frequencies; the embedding has twice as many features.
    """

    low: float = 0.5
    high: float = 20.0
    count: int = 32


def sinusoids(t: Array, frequencies: Frequencies = Frequencies()) -> Array:
    """``[sin(f_k t), cos(f_k t)]``, ``[..., 2 count]``, in the dtype of ``t``."""
    low, high, count = frequencies
    angles = t[..., None] * np.geomspace(low, high, count).astype(t.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def log_clock(path: Path) -> Callable[[Array], Array] | None:
    """``log(t) / 4`` for clocks that reach far (EDM's c_noise), else None.

    Times below ``path.t_min`` count as ``t_min``.
    """
    if path.t_max <= 2.0:
        return None
    floor = path.t_min if path.t_min > 0.0 else 1e-3
    return lambda t: 0.25 * jnp.log(jnp.maximum(t, floor))


class TimeEmbedding(nnx.Module):
    """Two linear layers on the sinusoids of a time.

    Args:
      size: features of the result.
      frequencies: of the sinusoids.
      zero: whether the last layer starts at zero, so that the time first has no effect.
      rngs: initialisation keys.
    """

    def __init__(
        self,
        size: int,
        frequencies: Frequencies = Frequencies(),
        *,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        start = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
        self.frequencies = frequencies
        self.hidden = nnx.Linear(2 * frequencies.count, size, rngs=rngs)
        self.out = nnx.Linear(size, size, kernel_init=start, rngs=rngs)

    def __call__(self, t: Array, dtype: Any) -> Array:
        """Embedding ``[..., size]`` in ``dtype`` of a float32 time."""
        features = sinusoids(t, self.frequencies).astype(dtype)
        return self.out(jax.nn.silu(self.hidden(features)))


class GuidanceEmbedding(nnx.Module):
    """A linear layer, zero at first, on the sinusoids of a guidance scale.

    Args:
      size: features of the result.
      frequencies: of the sinusoids.
      rngs: initialisation keys.
    """

    def __init__(self, size: int, frequencies: Frequencies, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        self.frequencies = frequencies
        self.linear = nnx.Linear(
            2 * frequencies.count, size, use_bias=False, kernel_init=zeros, rngs=rngs
        )

    def __call__(self, w: Array, dtype: Any) -> Array:
        """Embedding ``[..., size]`` in ``dtype`` of a float32 scale."""
        return self.linear(sinusoids(w, self.frequencies).astype(dtype))


def conditioning(
    module: Any,
    t: Array,
    s: Array | None,
    w: Array | None,
    vector: Array | float,
    dtype: Any,
) -> Array:
    """``silu(time(t) + vector + second(s) + guidance(w))`` of a network's own parts."""
    c = module.time(t, dtype) + vector
    if s is not None:
        c = c + module.second(s, dtype)
    if w is not None:
        c = c + module.guidance(w, dtype)
    return rows_first(jax.nn.silu(c))


class LabelEmbedding(nnx.Module):
    """A row per label; the null class is the row ``num_classes``.

    Args:
      num_classes: labels are ``0 .. num_classes - 1``.
      size: features of the result.
      std: standard deviation of the initial table.
      rngs: initialisation keys.
    """

    def __init__(
        self, num_classes: int, size: int, *, std: float = 0.02, rngs: nnx.Rngs
    ):
        self.num_classes = num_classes
        self.table = nnx.Param(
            std * jax.random.normal(rngs.params(), (num_classes + 1, size))
        )

    def __call__(self, labels: Array | None) -> Array:
        """Rows ``[B, size]``; the null row ``[size]`` without labels."""
        table = self.table.get_value()
        return table[self.num_classes if labels is None else labels]


class ConditionEmbedding(nnx.Module):
    """Labels ``[B]``, embeddings ``[B, d]`` or nothing as a vector to add.

    Args:
      size: features of the result.
      num_classes: for labels.
      features: ``d`` of embeddings; their null condition is zero.
      std: see `LabelEmbedding`.
      rngs: initialisation keys.

    Raises:
      ValueError: if both kinds are asked for.
    """

    def __init__(
        self,
        size: int,
        *,
        num_classes: int | None = None,
        features: int | None = None,
        std: float = 0.02,
        rngs: nnx.Rngs,
    ):
        if num_classes is not None and features is not None:
            raise ValueError(
                "a condition is labels or an embedding: pass num_classes or "
                f"cond_features, got {num_classes} and {features}"
            )
        if num_classes is not None:
            self.label = LabelEmbedding(num_classes, size, std=std, rngs=rngs)
        elif features is not None:
            self.project = nnx.Linear(features, size, rngs=rngs)
        self.num_classes = num_classes
        self.features = features

    def __call__(self, cond: Array | None) -> Array | float:
        """The vector ``[B, size]``; 0 for a network without condition.

        Raises:
          ValueError: on a condition of the wrong rank or type.
        """
        if self.num_classes is not None:
            if cond is not None and (
                cond.ndim != 1 or not jnp.issubdtype(cond.dtype, jnp.integer)
            ):
                raise ValueError(
                    f"cond must be integer labels [B], got {cond.dtype} {cond.shape}"
                )
            return self.label(cond)
        if self.features is None:
            return 0.0
        if cond is None:
            dtype = self.project.kernel.get_value().dtype
            return self.project(jnp.zeros((self.features,), dtype))
        if cond.ndim != 2 or cond.shape[1] != self.features:
            raise ValueError(
                f"cond must be an embedding [B, {self.features}], got {cond.shape}"
            )
        return self.project(cond)


def null_condition(
    num_classes: int | None, features: int | None
) -> Callable[[Any], Any] | None:
    """The null condition that goes with a `ConditionEmbedding`, as a function."""
    if num_classes is not None:
        return lambda cond: None if cond is None else jnp.full_like(cond, num_classes)
    if features is not None:
        return lambda cond: None if cond is None else jnp.zeros_like(cond)
    return None
