"""Differences of mean kernels or distances over all pairs: MMD, CMMD, energy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation.inputs import check_features
from distilljax.evaluation.statistics.pairs import (
    check_pair,
    over_rows,
    rounding,
)

Array = NDArray[np.float64]

_BANDWIDTH_ROWS = 2048


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


def _gaussian(squared: jax.Array, index: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.exp(-scale * squared).sum(1)


def _euclidean(squared: jax.Array, index: jax.Array, floor: jax.Array) -> jax.Array:
    # What is 0 up to rounding is 0: the root would magnify it.
    return jnp.sqrt(jnp.where(squared <= floor, 0.0, squared)).sum(1)


def _identity(squared: jax.Array, index: jax.Array, shared: None) -> jax.Array:
    return squared


def median_bandwidth(reference: ArrayLike) -> float:
    """Median Euclidean distance between two different rows of the reference.

    Args:
      reference: features ``[M, D]``, ``M >= 2``; of more than 2048 rows, 2048 evenly
        spaced ones are used.

    Returns:
      The bandwidth h of the kernel ``exp(-|x - y|^2 / (2 h^2))``.

    Raises:
      ValueError: more than half of the pairs are equal, so the median is 0.
    """
    y = check_features("reference", reference)
    count = min(len(y), _BANDWIDTH_ROWS)
    y = y[np.linspace(0, len(y) - 1, count).round().astype(int)]
    squared = over_rows(_identity, y, y, None)
    median = float(np.median(squared[np.triu_indices(count, 1)]))
    if median <= rounding(y, y):
        raise ValueError(
            "reference must have a positive median distance between rows, got 0 (most "
            "rows are equal); pass bandwidth= to choose the kernel's width."
        )
    return float(np.sqrt(median))


def _check_bandwidth(value: float) -> float:
    width = float(value)
    if not (np.isfinite(width) and width > 0):
        raise ValueError(
            f"bandwidth must be a positive number, got {value!r}; leave it out for "
            "the median distance of the reference."
        )
    return width


class _Sums(NamedTuple):
    """Sums of a kernel from every row, over both sets, the row itself included."""

    xx: Array
    yy: Array
    xy: Array
    yx: Array


def _sums(reduce, x: Array, y: Array, shared, mesh: Mesh | None) -> _Sums:
    return _Sums(
        over_rows(reduce, x, x, shared, mesh=mesh),
        over_rows(reduce, y, y, shared, mesh=mesh),
        over_rows(reduce, x, y, shared, mesh=mesh),
        over_rows(reduce, y, x, shared, mesh=mesh),
    )


def _influence_error(sums: _Sums) -> float:
    """Standard error from the first-order terms: each row's mean kernel."""
    n, m = len(sums.xx), len(sums.yy)
    x = 2.0 * (sums.xx / n - sums.xy / m)
    y = 2.0 * (sums.yy / m - sums.yx / n)
    return float(np.sqrt(x.var(ddof=1) / n + y.var(ddof=1) / m))


def mmd_estimate(
    samples: ArrayLike,
    reference: ArrayLike,
    bandwidth: float | None = None,
    *,
    mesh: Mesh | None = None,
) -> Estimate:
    """`mmd` with its standard error.

    The error is that of the first-order terms of the U-statistic, from the scatter of
    every row's mean kernel in both sets. Between equal distributions those terms
    vanish and the error is too small.
    """
    x, y = check_pair("samples", samples, "reference", reference)
    width = median_bandwidth(y) if bandwidth is None else _check_bandwidth(bandwidth)
    sums = _sums(_gaussian, x, y, np.float64(0.5 / width**2), mesh)
    n, m = len(x), len(y)
    value = (
        (sums.xx.sum() - n) / (n * (n - 1))
        + (sums.yy.sum() - m) / (m * (m - 1))
        - 2.0 * sums.xy.sum() / (n * m)
    )
    return Estimate(float(value), _influence_error(sums))


def mmd(
    samples: ArrayLike,
    reference: ArrayLike,
    bandwidth: float | None = None,
    *,
    mesh: Mesh | None = None,
) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j)
            - 2 mean_{i, j} k(x_i, y_j)                              (eq. 3)
        k(x, y) = exp(-|x - y|^2 / (2 h^2))

    Args:
      samples: features x ``[N, D]``, ``N >= 2``.
      reference: features y ``[M, D]``, ``M >= 2``.
      bandwidth: h, in units of the features. ``None`` takes the median distance
        between two rows of the reference (`median_bandwidth`), so the kernel is the
        same for every sampler that is compared with one reference.
      mesh: see `over_rows`.

    Returns:
      The estimate, at most 2. Its mean is 0 for equal distributions, so it is
      sometimes slightly negative. Cost ``(N + M)^2 D``.

    Raises:
      ValueError: wrong rank, fewer than two rows, unequal widths, NaN, or a bandwidth
        that is not positive.

    References:
      A. Gretton et al., "A kernel two-sample test", JMLR 2012, Lemma 6, eq. 3.
    """
    return mmd_estimate(samples, reference, bandwidth, mesh=mesh).value


def cmmd(
    samples: ArrayLike,
    reference: ArrayLike,
    *,
    bandwidth: float = 10.0,
    scale: float = 1000.0,
    mesh: Mesh | None = None,
) -> Estimate:
    """CMMD: scaled squared MMD of unit vectors, with a Gaussian kernel.

        scale (mean_{i, j} k(x_i, x_j) + mean_{i, j} k(y_i, y_j)
               - 2 mean_{i, j} k(x_i, y_j)),   k(x, y) = exp(-|x - y|^2 / (2 h^2))

    Rows are divided by their norm first, as the paper's CLIP embeddings are. Means
    include ``i = j``, as in the authors' code, so the number is never negative.

    Args:
      samples: features x ``[N, D]``, no row 0.
      reference: features y ``[M, D]``, no row 0.
      bandwidth: h; 10 in the paper.
      scale: 1000 in the authors' code.
      mesh: see `over_rows`.

    Returns:
      The value, and its standard error as in `mmd_estimate`.

    Raises:
      ValueError: wrong rank, fewer than two rows, unequal widths, NaN, a row of norm 0,
        or a bandwidth that is not positive.

    References:
      S. Jayasumana et al., "Rethinking FID: towards a better evaluation metric for
      image generation", 2023, arXiv:2401.09603.
    """
    x, y = check_pair("samples", samples, "reference", reference)
    x, y = unit_rows("samples", x), unit_rows("reference", y)
    width = _check_bandwidth(bandwidth)
    sums = _sums(_gaussian, x, y, np.float64(0.5 / width**2), mesh)
    n, m = len(x), len(y)
    value = sums.xx.sum() / n**2 + sums.yy.sum() / m**2 - 2 * sums.xy.sum() / (n * m)
    return Estimate(scale * max(float(value), 0.0), scale * _influence_error(sums))


def unit_rows(name: str, x: Array) -> Array:
    """Rows divided by their norm.

    Raises:
      ValueError: a row of norm 0.
    """
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(
            f"{name} must have no row of norm 0, got {int((norms == 0).sum())}; use "
            "features that are not all 0 for an image."
        )
    return x / norms


def energy_distance(
    samples: ArrayLike, reference: ArrayLike, *, mesh: Mesh | None = None
) -> Estimate:
    """Energy distance.

        2 mean |x_i - y_j| - mean |x_i - x_j| - mean |y_i - y_j|

    over all pairs, ``i = j`` included, so it is never negative and 0 only for equal
    sets. On the line it is the square of `scipy.stats.energy_distance`.

    Args:
      samples: features x ``[N, D]``, ``N >= 2``.
      reference: features y ``[M, D]``, ``M >= 2``.
      mesh: see `over_rows`.

    Returns:
      The value in units of the features, and its standard error as in `mmd_estimate`.
      Cost ``(N + M)^2 D``.

    Raises:
      ValueError: wrong rank, fewer than two rows, unequal widths, NaN.

    References:
      G. Szekely, M. Rizzo, "Energy statistics: a class of statistics based on
      distances", 2013.
    """
    x, y = check_pair("samples", samples, "reference", reference)
    sums = _sums(_euclidean, x, y, np.float64(rounding(x, y)), mesh)
    n, m = len(x), len(y)
    value = 2 * sums.xy.sum() / (n * m) - sums.xx.sum() / n**2 - sums.yy.sum() / m**2
    return Estimate(max(float(value), 0.0), _influence_error(sums))


def mean_distance(features: ArrayLike, *, mesh: Mesh | None = None) -> float:
    """Mean Euclidean distance between two different rows of ``[N, D]``, ``N >= 2``.

    Raises:
      ValueError: wrong rank, fewer than two rows, NaN.
    """
    x = check_features("features", features)
    sums = over_rows(_euclidean, x, x, np.float64(rounding(x, x)), mesh=mesh)
    return float(sums.sum() / (len(x) * (len(x) - 1)))
