"""Means and covariances that can be streamed and merged, and the Frechet distance."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation.inputs import check_features
from distilljax.evaluation.statistics.pairs import row_mesh

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and centred second moment of feature rows, in float64.

    Attributes:
      count: rows seen, N.
      mean: ``[D]``.
      scatter: ``sum_i (x_i - mean) (x_i - mean)^T``, ``[D, D]``.
    """

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: ArrayLike, *, mesh: Mesh | None = None) -> Moments:
        """Moments of features ``[N, D]``, ``N >= 1``.

        Args:
          features: ``[N, D]``, finite.
          mesh: devices that share the rows in the product ``[D, N] [N, D]``; None
            computes it with numpy.

        Raises:
          ValueError: wrong rank, no rows, NaN.
        """
        x = check_features("features", features, least=1)
        mean = x.mean(0)
        centred = x - mean
        scatter = centred.T @ centred if mesh is None else _product(centred, mesh)
        return cls(len(x), mean, scatter)

    def merge(self, other: Moments) -> Moments:
        """Moments of the rows of both.

            delta = mean_b - mean_a,  n = n_a + n_b
            mean = mean_a + delta n_b / n
            scatter = scatter_a + scatter_b + delta delta^T n_a n_b / n

        Associative and commutative up to rounding, so parts may come from chunks or
        from processes in any order.

        Raises:
          ValueError: unequal widths.

        References:
          T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm
          for computing sample variances", 1979, Stanford STAN-CS-79-773.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"other must have {len(self.mean)} features, got {len(other.mean)}; "
                "merge moments of one feature extractor."
            )
        count = self.count + other.count
        delta = other.mean - self.mean
        share = other.count / count
        return Moments(
            count,
            self.mean + share * delta,
            self.scatter
            + other.scatter
            + np.outer(delta, (share * self.count) * delta),
        )

    def update(self, chunk: ArrayLike, *, mesh: Mesh | None = None) -> Moments:
        """Moments with the rows of a further chunk ``[n, D]``."""
        return self.merge(Moments.of(chunk, mesh=mesh))

    @property
    def covariance(self) -> Array:
        """``scatter / (count - 1)``, ``[D, D]``.

        Raises:
          ValueError: fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(
                f"a covariance needs at least 2 rows, got {self.count}; pass more "
                "samples."
            )
        return self.scatter / (self.count - 1)


def moments_of(chunks: Iterable[ArrayLike], *, mesh: Mesh | None = None) -> Moments:
    """Moments of a stream of chunks ``[n, D]``; one chunk is in memory at a time.

    Args:
      chunks: feature arrays of one width, at least one.
      mesh: see `Moments.of`.

    Raises:
      ValueError: no chunk, unequal widths, wrong rank, NaN.
    """
    parts = (Moments.of(chunk, mesh=mesh) for chunk in chunks)
    first = next(parts, None)
    if first is None:
        raise ValueError("chunks must hold at least one array [n, D], got none.")
    return functools.reduce(Moments.merge, parts, first)


@jax.jit
def _gram(x: jax.Array) -> jax.Array:
    return x.T @ x


def _product(x: Array, mesh: Mesh) -> Array:
    """``x^T x`` with the rows split over devices."""
    line = row_mesh(mesh)
    padded = np.zeros((-(-len(x) // line.size) * line.size, x.shape[1]))
    padded[: len(x)] = x
    with jax.enable_x64(True):
        split = jax.device_put(padded, NamedSharding(line, PartitionSpec("rows")))
        return np.asarray(_gram(split))


def _root(covariance: Array) -> Array:
    """``R [D, rank]`` with ``R R^T = covariance``, from the symmetric eigenvalues."""
    values, vectors = np.linalg.eigh(covariance)
    # Smaller ones are rounding, and their roots would be 1e-8, not 1e-16.
    real = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, real] * np.sqrt(values[real])


def frechet_distance(a: ArrayLike | Moments, b: ArrayLike | Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to two sets.

        |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2})

    With Inception features this number is the FID. Covariances use ``ddof=1``.

    Args:
      a: features ``[N, D]``, ``N >= 2``, or their `Moments`.
      b: features ``[M, D]``, ``M >= 2``, or their `Moments`.

    Returns:
      The distance, in squared units of the features; 0 for equal sets. Its bias is of
      order ``D / N`` of the spread and upwards: compare equal counts only.

    Raises:
      ValueError: wrong rank, fewer than two rows, unequal widths, NaN.

    Numerics:
      ``tr (S_a S_b)^{1/2}`` is the sum of the singular values of ``R_a^T R_b`` with
      ``S = R R^T`` from symmetric eigenvalues, that is of the square roots of the
      eigenvalues of ``R_a^T S_b R_a``. Eigenvalues that rounding made are left out, so
      singular covariances (fewer rows than features, features that never vary) cost no
      accuracy, unlike with a general matrix root. Cost ``N D^2 + D^3``.

    References:
      D. Dowson, B. Landau, "The Frechet distance between multivariate normal
      distributions", 1982. M. Heusel et al., "GANs trained by a two time-scale update
      rule converge to a local Nash equilibrium", 2017, arXiv:1706.08500, eq. 6.
    """
    p, q = _fitted("a", a), _fitted("b", b)
    if p.mean.shape != q.mean.shape:
        raise ValueError(
            f"a and b must have equally many columns, got {len(p.mean)} and "
            f"{len(q.mean)}; compute both with the same features."
        )
    cov_p, cov_q = p.covariance, q.covariance
    shift = p.mean - q.mean
    cross = np.linalg.svd(_root(cov_p).T @ _root(cov_q), compute_uv=False).sum()
    distance = shift @ shift + np.trace(cov_p) + np.trace(cov_q) - 2.0 * cross
    return max(float(distance), 0.0)


def _fitted(name: str, value: ArrayLike | Moments) -> Moments:
    if isinstance(value, Moments):
        return value
    return Moments.of(check_features(name, value))


def frechet_error(samples: ArrayLike, reference: Moments, groups: int = 10) -> float:
    """Standard error of the Frechet distance, from the samples' own scatter.

        sqrt((g - 1) / g sum_i (F_i - mean F)^2)

    with ``F_i`` the distance without group i of the samples (delete-a-group jackknife).
    It says how far another draw of as many samples would land; the bias, and the
    scatter of the reference, are not in it.

    Args:
      samples: features ``[N, D]``, ``N >= 2 * groups``.
      reference: moments of the reference.
      groups: g, at least 2; row i belongs to group ``i mod g``.

    Returns:
      The standard error. Cost ``groups D^3``.

    Raises:
      ValueError: too few samples or groups, unequal widths.

    References:
      B. Efron, C. Stein, "The jackknife estimate of variance", 1981.
    """
    x = check_features("samples", samples)
    if groups < 2 or len(x) < 2 * groups:
        raise ValueError(
            f"groups must be at least 2 and samples at least twice as many, got "
            f"{groups} and {len(x)}; pass fewer groups or more samples."
        )
    if x.shape[1:] != reference.mean.shape:
        raise ValueError(
            f"samples and reference must have equally many columns, got {x.shape[1]} "
            f"and {len(reference.mean)}; compute both with the same features."
        )
    parts = [Moments.of(x[i::groups]) for i in range(groups)]
    cov_r = reference.covariance
    root = _root(cov_r)
    found = []
    for i in range(groups):
        rest = functools.reduce(Moments.merge, parts[:i] + parts[i + 1 :])
        cov, shift = rest.covariance, rest.mean - reference.mean
        # Roots of eigenvalues: 1e-8 of the distance off, and many times as fast.
        values = np.linalg.eigvalsh(root.T @ cov @ root)
        cross = np.sqrt(np.maximum(values, 0.0)).sum()
        found.append(shift @ shift + np.trace(cov) + np.trace(cov_r) - 2.0 * cross)
    return float(np.sqrt((groups - 1) * np.var(found)))
