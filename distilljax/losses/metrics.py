"""Metrics for `regress`: how large is the step from an output to its target.

A metric is ``(output, direction, leading) -> values``: values per element (shape of
``output``) or per sample (the first ``leading`` axes). Differences are taken in
residual form ``direction + (sg(output) - output)``.

| metric | value of the residual r |
|---|---|
| `half_mse` | r^2 / 2 per element; the mean follows |
| `sum_squares` | sum r^2 per sample |
| `absolute`, `largest` | |r| per element, max |r| per sample |
| `PseudoHuberVector(c)` | sqrt(|r|^2 + c^2) - c per sample (iCT, ECT) |
| `PseudoHuberElement(c)` | sqrt(r^2 + c^2) - c per element (LCM codes) |
| `norm` | |r| per sample |
| `mse_cosine` | mean r^2 + 1 - cos(output, target) per sample |
| `FeatureMetric(fn)` | half_mse between features of output and target |
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from distilljax.runtime import words

Array = jax.Array
sg = jax.lax.stop_gradient


class Metric(Protocol):
    """``(output, direction, leading) -> values`` per element or per sample."""

    def __call__(self, output: Array, direction: Array, leading: int) -> Array: ...


def residual(output: Array, direction: Array) -> Array:
    """Target minus output with the value of ``direction`` exactly, in float32."""
    wide = jnp.promote_types(output.dtype, jnp.float32)
    output, direction = output.astype(wide), direction.astype(wide)
    return direction + (sg(output) - output)


def _trailing(x: Array, leading: int) -> tuple[int, ...]:
    return tuple(range(leading, x.ndim))


@words.value
def half_mse(output: Array, direction: Array, leading: int) -> Array:
    """``r^2 / 2`` per element."""
    return 0.5 * residual(output, direction) ** 2


@words.value
def sum_squares(output: Array, direction: Array, leading: int) -> Array:
    """``sum r^2`` per sample: the squared error of most papers."""
    r = residual(output, direction)
    return jnp.sum(r**2, axis=_trailing(r, leading))


@words.value
def absolute(output: Array, direction: Array, leading: int) -> Array:
    """``|r|`` per element: ``l1`` of consistency models; gradient 0 at 0."""
    r = residual(output, direction)
    return r * jnp.sign(sg(r))


@words.value
def largest(output: Array, direction: Array, leading: int) -> Array:
    """``max |r|`` per sample: ``linf`` of consistency models."""
    r = absolute(output, direction, leading)
    return jnp.max(r, axis=_trailing(r, leading))


def _safe_sqrt(squared: Array) -> Array:
    """Square root whose gradient at 0 is 0."""
    positive = squared > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


@words.value
def norm(output: Array, direction: Array, leading: int) -> Array:
    """``|r|`` per sample; gradient 0 at 0."""
    return _safe_sqrt(sum_squares(output, direction, leading))


@words.value
def mse_cosine(output: Array, direction: Array, leading: int) -> Array:
    """``mean r^2 + mean(1 - cos)``, the cosine of output and target on the last axis.

    The flow-matching loss of FACM (Peng et al., 2025, arXiv:2507.03738).
    """
    r = residual(output, direction)
    target, found = sg(output) + sg(direction), output.astype(r.dtype)
    target = target.astype(r.dtype)

    def size(x: Array) -> Array:
        return jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=-1), 1e-12))

    cosine = jnp.sum(found * target, axis=-1) / (size(found) * size(target))
    apart = jnp.mean(1.0 - cosine, axis=_trailing(cosine, leading))
    return jnp.mean(r**2, axis=_trailing(r, leading)) + apart


@words.call
@dataclasses.dataclass(frozen=True)
class PseudoHuberVector:
    """``sqrt(|r|^2 + c^2) - c`` per sample (Song and Dhariwal 2023, eq. 7).

    Attributes:
      c: width, at least 0; iCT uses ``0.00054 sqrt(D)``. ``c = 0`` is the norm.
    """

    c: float

    def __call__(self, output: Array, direction: Array, leading: int) -> Array:
        squared = sum_squares(output, direction, leading)
        return _safe_sqrt(squared + self.c**2) - self.c


@words.call
@dataclasses.dataclass(frozen=True)
class PseudoHuberElement:
    """``sqrt(r^2 + c^2) - c`` per element, averaged (LCM, PCM, DCM codes).

    Attributes:
      c: width, at least 0; LCM uses 0.001.
    """

    c: float

    def __call__(self, output: Array, direction: Array, leading: int) -> Array:
        return _safe_sqrt(residual(output, direction) ** 2 + self.c**2) - self.c


@dataclasses.dataclass(frozen=True)
class FeatureMetric:
    """Distance between features of the output and of its target (LPIPS, MFD, ...).

    Attributes:
      features: maps ``[B, ...]`` to a pytree of features with batch first.
      base: metric between features, default `half_mse`.
    """

    features: Callable[[Array], object]
    base: Metric = half_mse

    def __call__(self, output: Array, direction: Array, leading: int) -> Array:
        if leading != 1:
            raise ValueError("a feature metric gives one value per sample: weight [B]")
        target = sg(self.features(sg(output) + direction))
        found = self.features(output)

        def distance(a: Array, b: Array) -> Array:
            values = self.base(a, sg(b - a), 1)
            return jnp.mean(values, axis=tuple(range(1, values.ndim)))

        values = jax.tree.leaves(jax.tree.map(distance, found, target))
        return functools.reduce(operator.add, values)
