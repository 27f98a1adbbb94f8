"""Distances between two sets of feature vectors, in float64.

Every function takes float features ``[N, D]`` (pixels, or the output of a feature
network) and returns plain floats or arrays. Pairwise distances are computed in
blocks, so memory stays bounded however many samples there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation.inputs import check_features, check_same_width

Array = NDArray[np.float64]

_BLOCK_ELEMENTS = 2**22
_BANDWIDTH_ROWS = 2048


class PrecisionRecall(NamedTuple):
    """Share of good samples and share of the data that is covered, both in [0, 1]."""

    precision: float
    recall: float


def _pair(
    first: str, a: ArrayLike, second: str, b: ArrayLike, least: int = 2
) -> tuple[Array, Array]:
    x, y = check_features(first, a, least), check_features(second, b, least)
    check_same_width(first, x, second, y)
    return x, y


def _blocks(a: Array, b: Array) -> Iterator[tuple[slice, Array]]:
    """Rows of the squared distances ``|a_i - b_j|^2``, block by block.

    Uses ``|a|^2 + |b|^2 - 2 a.b`` about the mean of `b`, which keeps the cancellation
    small; `_rounding` bounds what is left of it.
    """
    centre = b.mean(0)
    a, b = a - centre, b - centre
    norms_a, norms_b = np.einsum("nd,nd->n", a, a), np.einsum("nd,nd->n", b, b)
    rows = max(1, _BLOCK_ELEMENTS // len(b))
    for start in range(0, len(a), rows):
        block = slice(start, start + rows)
        squared = a[block] @ b.T
        squared *= -2.0
        squared += norms_b
        squared += norms_a[block, None]
        yield block, np.maximum(squared, 0.0, out=squared)


def _rounding(a: Array, b: Array) -> float:
    """Squared distances below this cannot be told from 0."""
    centre = b.mean(0)
    largest = max(np.square(x - centre).sum(1).max() for x in (a, b))
    return 16 * a.shape[1] * np.finfo(np.float64).eps * float(largest)


def _root(covariance: Array) -> Array:
    """``R`` with ``R R^T = covariance``, from the symmetric eigenvalues."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to two sets.

        |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2})

    With Inception features this number is the FID. Covariances use ``ddof=1``.

    Args:
      a: features ``[N, D]``, ``N >= 2``.
      b: features ``[M, D]``, ``M >= 2``.

    Returns:
      The distance, in squared units of the features; 0 for equal sets.

    Raises:
      ValueError: wrong rank, fewer than two rows, unequal widths, NaN.

    Numerics:
      ``tr (S_a S_b)^{1/2}`` is the sum of the singular values of ``R_a^T R_b`` with
      ``S = R R^T`` from symmetric eigenvalues. Features that never vary (a singular
      covariance) therefore cost no accuracy, unlike with a general matrix root.

    References:
      D. Dowson, B. Landau, "The Frechet distance between multivariate normal
      distributions", 1982. M. Heusel et al., "GANs trained by a two time-scale update
      rule converge to a local Nash equilibrium", 2017, arXiv:1706.08500, eq. 6.
    """
    x, y = _pair("a", a, "b", b)
    cov_x, cov_y = (np.atleast_2d(np.cov(z, rowvar=False, ddof=1)) for z in (x, y))
    shift = x.mean(0) - y.mean(0)
    cross = np.linalg.svd(_root(cov_x).T @ _root(cov_y), compute_uv=False).sum()
    distance = shift @ shift + np.trace(cov_x) + np.trace(cov_y) - 2.0 * cross
    return max(float(distance), 0.0)


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
    squared = np.concatenate([block for _, block in _blocks(y, y)])
    median = float(np.median(squared[np.triu_indices(count, 1)]))
    if median <= _rounding(y, y):
        raise ValueError(
            "reference must have a positive median distance between rows, got 0 (most "
            "rows are equal); pass bandwidth= to choose the kernel's width."
        )
    return float(np.sqrt(median))


def mmd(
    samples: ArrayLike, reference: ArrayLike, bandwidth: float | None = None
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

    Returns:
      The estimate, at most 2. Its mean is 0 for equal distributions, so it is
      sometimes slightly negative.

    Raises:
      ValueError: wrong rank, fewer than two rows, unequal widths, NaN, or a bandwidth
        that is not positive.

    References:
      A. Gretton et al., "A kernel two-sample test", JMLR 2012, Lemma 6, eq. 3.
    """
    x, y = _pair("samples", samples, "reference", reference)
    width = median_bandwidth(y) if bandwidth is None else float(bandwidth)
    if not (np.isfinite(width) and width > 0):
        raise ValueError(
            f"bandwidth must be a positive number, got {bandwidth!r}; leave it out for "
            "the median distance of the reference."
        )

    def total(a: Array, b: Array) -> float:
        scale = -0.5 / width**2
        return float(
            sum(
                np.exp(np.multiply(block, scale, out=block), out=block).sum()
                for _, block in _blocks(a, b)
            )
        )

    def within(a: Array) -> float:
        return (total(a, a) - len(a)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2.0 * total(x, y) / (len(x) * len(y))


def _kth_distance(x: Array, k: int) -> Array:
    """Squared distance ``[N]`` of every row to its k-th nearest other row."""
    out = np.empty(len(x))
    for block, squared in _blocks(x, x):
        index = np.arange(len(squared))
        squared[index, index + block.start] = np.inf
        out[block] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return out


def precision_recall(
    reference: ArrayLike, samples: ArrayLike, k: int = 3
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

    Returns:
      Precision and recall, each in [0, 1].

    Raises:
      ValueError: wrong rank, no more than k rows, unequal widths, NaN, ``k < 1``.

    Numerics:
      A point on a ball's surface is inside; equality is taken up to the rounding of
      the squared distances.

    References:
      T. Kynkaanniemi et al., "Improved precision and recall metric for assessing
      generative models", NeurIPS 2019, arXiv:1904.06991, eqs. 1 and 2.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; the paper uses 3.")
    y, x = _pair("reference", reference, "samples", samples, least=k + 1)
    slack = _rounding(x, y)
    radii_y, radii_x = _kth_distance(y, k) + slack, _kth_distance(x, k) + slack
    inside = 0
    covered = np.zeros(len(y), bool)
    for block, squared in _blocks(x, y):
        inside += int((squared <= radii_y).any(1).sum())
        covered |= (squared <= radii_x[block, None]).any(0)
    return PrecisionRecall(inside / len(x), float(covered.mean()))


def nearest_distance(samples: ArrayLike, reference: ArrayLike) -> Array:
    """Euclidean distance of every sample to the nearest row of the reference.

    Args:
      samples: features ``[N, D]``.
      reference: features ``[M, D]``, ``M >= 1``.

    Returns:
      Distances ``[N]``; exactly 0 for a copy.

    Raises:
      ValueError: wrong rank, empty, unequal widths, NaN.
    """
    x, y = _pair("samples", samples, "reference", reference, least=1)
    nearest = np.concatenate([block.argmin(1) for _, block in _blocks(x, y)])
    return np.linalg.norm(x - y[nearest], axis=1)


def leave_one_out_distance(reference: ArrayLike) -> Array:
    """Euclidean distance of every row to the nearest *other* row of the same set.

    Args:
      reference: features ``[M, D]``, ``M >= 2``.

    Returns:
      Distances ``[M]``; exactly 0 for rows that occur more than once.

    Raises:
      ValueError: wrong rank, fewer than two rows, NaN.
    """
    y = check_features("reference", reference)
    nearest = np.empty(len(y), int)
    for block, squared in _blocks(y, y):
        index = np.arange(len(squared))
        squared[index, index + block.start] = np.inf
        nearest[block] = squared.argmin(1)
    return np.linalg.norm(y - y[nearest], axis=1)
