"""Statistics of nearest neighbours: precision, recall, density, coverage, distances."""

from __future__ import annotations

import dataclasses
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
    without_self,
)

Array = NDArray[np.float64]


class PrecisionRecall(NamedTuple):
    """Share of good samples and share of the data that is covered, both in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How densely samples fill the data's balls, and how many balls hold a sample."""

    density: float
    coverage: float


@dataclasses.dataclass(frozen=True)
class _Nearest:
    """Numbers and squared distances ``[r, k]`` of the k nearest rows, nearest first."""

    k: int
    others: bool = False

    def __call__(self, squared: jax.Array, index: jax.Array, shared: None):
        if self.others:
            squared = without_self(squared, index)
        rows = jnp.arange(len(squared))
        at, far = [], []
        for _ in range(self.k):
            nearest = squared.argmin(1)
            at.append(nearest)
            far.append(squared[rows, nearest])
            squared = squared.at[rows, nearest].set(jnp.inf)
        return jnp.stack(at, 1), jnp.stack(far, 1)


@dataclasses.dataclass(frozen=True)
class _KthOther:
    """Squared distance ``[r]`` to the k-th nearest other row of the same set."""

    k: int

    def __call__(self, squared: jax.Array, index: jax.Array, shared: None):
        # Passes that only read, one for each of the k smallest different values.
        squared = without_self(squared, index)
        value = reached = squared.min(1)
        for _ in range(self.k - 1):
            short = (squared <= reached[:, None]).sum(1) < self.k
            above = squared > reached[:, None]
            reached = jnp.where(above, squared, jnp.inf).min(1)
            value = jnp.where(short, reached, value)
        return value


def _in_balls(squared: jax.Array, index: jax.Array, radii: jax.Array) -> jax.Array:
    """How many balls around the columns hold each row."""
    return (squared <= radii).sum(1)


def _radii(x: Array, k: int, slack: float, mesh: Mesh | None) -> Array:
    """Squared radius ``[N]`` to every row's k-th nearest other row."""
    return over_rows(_KthOther(k), x, x, None, mesh=mesh) + slack


def _check_k(k: int, usual: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; the paper uses {usual}.")


def precision_recall(
    reference: ArrayLike,
    samples: ArrayLike,
    k: int = 3,
    *,
    mesh: Mesh | None = None,
) -> PrecisionRecall:
    """Improved precision and recall.

    A set's manifold is the union of balls around its points, each reaching to the
    point's k-th nearest other point (eq. 1). Precision is the share of samples inside
    the reference's manifold, recall the share of the reference inside the samples'
    manifold (eq. 2).

    Args:
      reference: features ``[M, D]`` of real data, ``M > k``.
      samples: features ``[N, D]``, ``N > k``.
      k: which neighbour sets the radius.
      mesh: see `over_rows`.

    Returns:
      Precision and recall, each in [0, 1]. Cost ``(N + M)^2 D``.

    Raises:
      ValueError: wrong rank, no more than k rows, unequal widths, NaN, ``k < 1``.

    Numerics:
      A point on a ball's surface is inside; equality is taken up to the rounding of
      the squared distances.

    References:
      T. Kynkaanniemi et al., "Improved precision and recall metric for assessing
      generative models", NeurIPS 2019, arXiv:1904.06991, eqs. 1 and 2.
    """
    _check_k(k, 3)
    y, x = check_pair("reference", reference, "samples", samples, least=k + 1)
    slack = rounding(x, y)
    good = over_rows(_in_balls, x, y, _radii(y, k, slack, mesh), mesh=mesh) > 0
    covered = over_rows(_in_balls, y, x, _radii(x, k, slack, mesh), mesh=mesh) > 0
    return PrecisionRecall(float(good.mean()), float(covered.mean()))


def density_coverage(
    reference: ArrayLike,
    samples: ArrayLike,
    k: int = 5,
    *,
    mesh: Mesh | None = None,
) -> DensityCoverage:
    """Density and coverage.

    With the balls ``B_i`` around the reference's points, each reaching to the point's
    k-th nearest other point,

        density  = 1 / (k N) sum_j sum_i 1[x_j in B_i]
        coverage = 1 / M sum_i 1[some x_j in B_i]

    Outliers among the samples cannot inflate either, as they can inflate recall.

    Args:
      reference: features ``[M, D]`` of real data, ``M > k``.
      samples: features ``[N, D]``.
      k: which neighbour sets the radius.
      mesh: see `over_rows`.

    Returns:
      Density, at least 0 with mean near 1 for equal distributions, and coverage in
      [0, 1], with mean ``1 - 2^-k`` there if N = M is large. Cost ``M (N + M) D``.

    Raises:
      ValueError: wrong rank, no more than k rows, unequal widths, NaN, ``k < 1``.

    Numerics:
      As in `precision_recall`.

    References:
      M. Naeem et al., "Reliable fidelity and diversity metrics for generative models",
      ICML 2020, arXiv:2002.09797, sections 3.1 and 3.2.
    """
    _check_k(k, 5)
    y, x = check_pair("reference", reference, "samples", samples, least=1)
    if len(y) <= k:
        raise ValueError(
            f"reference must have at least {k + 1} rows for k={k}, got {len(y)}; pass "
            "more data or a smaller k."
        )
    radii = _radii(y, k, rounding(x, y), mesh)
    inside = over_rows(_in_balls, x, y, radii, mesh=mesh)
    nearest = over_rows(_Nearest(1), y, x, None, mesh=mesh)[1][:, 0]
    return DensityCoverage(float(inside.mean() / k), float((nearest <= radii).mean()))


def nearest_distance(
    samples: ArrayLike, reference: ArrayLike, *, mesh: Mesh | None = None
) -> Array:
    """Euclidean distance of every sample to the nearest row of the reference.

    Args:
      samples: features ``[N, D]``.
      reference: features ``[M, D]``, ``M >= 1``.
      mesh: see `over_rows`.

    Returns:
      Distances ``[N]``; exactly 0 for a copy.

    Raises:
      ValueError: wrong rank, empty, unequal widths, NaN.
    """
    x, y = check_pair("samples", samples, "reference", reference, least=1)
    nearest = over_rows(_Nearest(1), x, y, None, mesh=mesh)[0][:, 0]
    return np.linalg.norm(x - y[nearest], axis=1)


def nearest_ratio(
    samples: ArrayLike, reference: ArrayLike, *, mesh: Mesh | None = None
) -> Array:
    """Distance to the nearest row of the reference over that to the second nearest.

        |x - y_(1)| / |x - y_(2)|

    A copy is far nearer to its original than to anything else, also where the data are
    sparse and a fixed threshold would miss it; below 1/3 counts as one in the paper.

    Args:
      samples: features x ``[N, D]``.
      reference: features y ``[M, D]``, ``M >= 2``.
      mesh: see `over_rows`.

    Returns:
      Ratios ``[N]`` in [0, 1]; 0 for a copy of a row that occurs once, 1 for a copy of
      one that occurs twice.

    Raises:
      ValueError: wrong rank, too few rows, unequal widths, NaN.

    References:
      T. Yoon et al., "Diffusion probabilistic models generalize when they fail to
      memorize", ICML 2023 workshop on structured probabilistic inference.
    """
    x, y = check_pair("samples", samples, "reference", reference, least=1)
    y = check_features("reference", y)
    pairs = over_rows(_Nearest(2), x, y, None, mesh=mesh)[0]
    distances = [np.linalg.norm(x - y[column], axis=1) for column in pairs.T]
    near, next_ = np.sort(distances, axis=0)
    return np.divide(near, next_, out=np.ones(len(x)), where=next_ > 0)


def leave_one_out_distance(reference: ArrayLike, *, mesh: Mesh | None = None) -> Array:
    """Euclidean distance of every row to the nearest *other* row of the same set.

    Args:
      reference: features ``[M, D]``, ``M >= 2``.
      mesh: see `over_rows`.

    Returns:
      Distances ``[M]``; exactly 0 for rows that occur more than once.

    Raises:
      ValueError: wrong rank, fewer than two rows, NaN.
    """
    y = check_features("reference", reference)
    nearest = over_rows(_Nearest(1, others=True), y, y, None, mesh=mesh)[0][:, 0]
    return np.linalg.norm(y - y[nearest], axis=1)
