"""Scores of one set of samples, and distances along random directions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation.inputs import check_features
from distilljax.evaluation.statistics.discrepancies import Estimate, unit_rows
from distilljax.evaluation.statistics.pairs import check_pair

Array = NDArray[np.float64]

_CHUNK_ELEMENTS = 2**22


def inception_score(logits: ArrayLike, *, splits: int = 10) -> Estimate:
    """Inception score.

        exp(mean_i KL(p(y | x_i) | p(y))),   p(y) = mean_i p(y | x_i)

    computed in each of the splits (runs of equal length in the given order; shuffle
    samples that are sorted by class first).

    Args:
      logits: unnormalised log-probabilities of classes ``[N, C]``; published scores
        take those of Inception without the bias of its last layer.
      splits: number of parts, at most N.

    Returns:
      Mean over splits, in [1, C], and its standard error ``std / sqrt(splits)``
      (std with ddof 1; 0 for one split).

    Raises:
      ValueError: wrong rank, NaN, bad splits.

    References:
      T. Salimans et al., "Improved techniques for training GANs", 2016,
      arXiv:1606.03498, section 4.
    """
    z = check_features("logits", logits, least=1)
    if not 1 <= splits <= len(z):
        raise ValueError(
            f"splits must lie between 1 and the {len(z)} samples, got {splits}; the "
            "paper uses 10 for 50000."
        )
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    edges = [i * len(z) // splits for i in range(splits + 1)]
    found = []
    for start, stop in zip(edges[:-1], edges[1:]):
        part = log_p[start:stop]
        p = np.exp(part)
        # Rows may lie beyond the smallest double; their part of the sum is 0.
        log_mean = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))
        found.append(math.exp((p * (part - log_mean)).sum(1).mean()))
    error = np.std(found, ddof=1) / math.sqrt(splits) if splits > 1 else 0.0
    return Estimate(float(np.mean(found)), float(error))


def vendi_score(features: ArrayLike, q: float = 1.0) -> float:
    """Vendi score: the effective number of different samples.

        exp(-sum_i l_i log l_i)                 for q = 1
        (sum_i l_i^q)^(1 / (1 - q))             for other q
        1 / max_i l_i                           for q = inf

    with ``l`` the eigenvalues of ``K / N``, ``K_ij`` the cosine of rows i and j.

    Args:
      features: ``[N, D]``, no row 0.
      q: order, at least 0 and possibly inf; small orders count rare kinds, large ones
        only common kinds.

    Returns:
      A number from 1 (all rows alike) to ``min(N, D)``. Cost
      ``N D min(N, D) + min(N, D)^3``: with fewer features than samples the
      eigenvalues are those of the ``[D, D]`` product.

    Raises:
      ValueError: wrong rank, NaN, a row of norm 0, negative q.

    References:
      D. Friedman, A. Dieng, "The Vendi score: a diversity evaluation metric for machine
      learning", TMLR 2023, arXiv:2210.02410. A. Pasarkar, A. Dieng, "Cousins of
      the Vendi score", 2023, arXiv:2310.12952.
    """
    if math.isnan(q) or q < 0:
        raise ValueError(f"q must be at least 0, got {q}; the paper's score has q = 1.")
    x = unit_rows("features", check_features("features", features, least=1))
    gram = x.T @ x if x.shape[1] < len(x) else x @ x.T
    values = np.linalg.eigvalsh(gram / len(x))
    values = values[values > len(values) * np.finfo(np.float64).eps * values[-1]]
    if q == 1:
        return float(np.exp(-(values * np.log(values)).sum()))
    if math.isinf(q):
        return float(1.0 / values.max())
    return float((values**q).sum() ** (1.0 / (1.0 - q)))


def sliced_wasserstein(
    samples: ArrayLike,
    reference: ArrayLike,
    *,
    projections: int = 128,
    order: float = 2.0,
    seed: int = 0,
) -> Estimate:
    """Sliced Wasserstein distance.

        (mean_u W_p(u.x, u.y)^p)^(1/p),
        W_p(a, b)^p = integral_0^1 |F_a^-1(q) - F_b^-1(q)|^p dq

    over directions u on the unit sphere. The integral is exact for any two counts: both
    quantile functions are constant between the levels ``i / N`` and ``j / M``.

    Args:
      samples: features x ``[N, D]``.
      reference: features y ``[M, D]``.
      projections: number of directions.
      order: p, at least 1.
      seed: of the directions, so that all samplers are judged along the same ones.

    Returns:
      The distance in units of the features, and the standard error that the finite
      number of directions leaves (0 for one). Cost
      ``projections (N + M) (D + log(N + M))``.

    Raises:
      ValueError: wrong rank, unequal widths, NaN, bad projections or order.

    References:
      N. Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", 2015.
      S. Kolouri et al., "Generalized sliced Wasserstein distances", 2019,
      arXiv:1902.00434.
    """
    x, y = check_pair("samples", samples, "reference", reference, least=1)
    if projections < 1 or not 1 <= order < math.inf:
        raise ValueError(
            "projections must be at least 1 and order finite and at least 1, got "
            f"{projections} and {order}."
        )
    directions = np.random.default_rng(seed).normal(size=(projections, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    n, m = len(x), len(y)
    # Levels as integers over n m, so that equal ones are equal.
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    at_x, at_y = levels[:-1] // m, levels[:-1] // n
    weights = np.diff(levels) / (n * m)
    found = np.empty(projections)
    step = max(1, _CHUNK_ELEMENTS // (n + m))
    for start in range(0, projections, step):
        part = directions[start : start + step].T
        a, b = np.sort(x @ part, axis=0), np.sort(y @ part, axis=0)
        found[start : start + step] = weights @ np.abs(a[at_x] - b[at_y]) ** order
    mean = found.mean()
    value = mean ** (1.0 / order)
    if projections == 1 or value == 0.0:
        return Estimate(float(value), 0.0)
    slope = value / (order * mean)
    error = slope * found.std(ddof=1) / math.sqrt(projections)
    return Estimate(float(value), float(error))
