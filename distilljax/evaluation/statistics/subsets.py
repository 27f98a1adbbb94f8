"""Kernel inception distance: a mean over subsets, split over devices."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike

from distilljax.evaluation.statistics.pairs import check_pair, row_mesh


class KernelDistance(NamedTuple):
    """What `kid` found.

    Attributes:
      value: mean over subsets.
      error: standard error of that mean, ``std / sqrt(subsets)``. Subsets overlap, so
        it is the error of drawing subsets, not of drawing samples.
      std: standard deviation of one subset (ddof 0), which torch-fidelity prints.
    """

    value: float
    error: float
    std: float


def kid(
    samples: ArrayLike,
    reference: ArrayLike,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    seed: int = 2020,
    mesh: Mesh | None = None,
) -> KernelDistance:
    """Kernel Inception distance: mean unbiased squared MMD of subsets.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j)
            - 2 mean_{i, j} k(x_i, y_j),    k(x, y) = (x.y / D + 1)^degree

    Args:
      samples: features x ``[N, D]``, ``N >= subset_size``.
      reference: features y ``[M, D]``, ``M >= subset_size``.
      subsets: number of subsets.
      subset_size: rows of each, drawn without replacement; at most half of the
        smaller set, if the error shall mean something.
      degree: of the kernel, 3 in the paper.
      seed: of the subsets; the draws are those of torch-fidelity for the same seed.
      mesh: devices that share the subsets; see `row_mesh`.

    Returns:
      Mean, its standard error, and the standard deviation of a subset. The mean is
      unbiased at any subset size. Cost ``subsets * subset_size^2 D``.

    Raises:
      ValueError: wrong rank, unequal widths, NaN, fewer rows than `subset_size`.

    References:
      M. Binkowski et al., "Demystifying MMD GANs", ICLR 2018, arXiv:1801.01401,
      section 4.
    """
    x, y = check_pair("samples", samples, "reference", reference)
    most = min(len(x), len(y))
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}; the paper uses 3.")
    if subsets < 1 or not 2 <= subset_size <= most:
        raise ValueError(
            f"subsets must be at least 1 and subset_size from 2 to {most}, the smaller "
            f"set's rows, got {subsets} and {subset_size}; pass subset_size={most}."
        )
    rng = np.random.RandomState(seed)
    line = row_mesh(mesh)
    rows = np.zeros((-(-subsets // line.size) * line.size, 2, subset_size), np.int32)
    for i in range(subsets):
        rows[i, 0] = rng.choice(len(x), subset_size, replace=False)
        rows[i, 1] = rng.choice(len(y), subset_size, replace=False)
    with jax.enable_x64(True):
        whole = NamedSharding(line, PartitionSpec())
        found = _polynomial_mmds(
            line,
            degree,
            jax.device_put(x, whole),
            jax.device_put(y, whole),
            jax.device_put(rows, NamedSharding(line, PartitionSpec("rows"))),
        )
    found = np.asarray(found)[:subsets]
    std = float(found.std())
    return KernelDistance(float(found.mean()), float(std / np.sqrt(subsets)), std)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _polynomial_mmds(
    mesh: Mesh, degree: int, x: jax.Array, y: jax.Array, rows: jax.Array
) -> jax.Array:
    """Unbiased squared MMD ``[S]`` of subsets ``rows [S, 2, n]``, over devices."""
    n, width = rows.shape[2], x.shape[1]

    def kernel(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a @ b.T / width + 1.0) ** degree

    def within(a: jax.Array) -> jax.Array:
        diagonal = ((a * a).sum(1) / width + 1.0) ** degree
        return (kernel(a, a).sum() - diagonal.sum()) / (n * (n - 1))

    def local(x: jax.Array, y: jax.Array, rows: jax.Array) -> jax.Array:
        def one(rows: jax.Array) -> jax.Array:
            a, b = x[rows[0]], y[rows[1]]
            return within(a) + within(b) - 2.0 * kernel(a, b).mean()

        return jax.lax.map(one, rows)

    whole, split = PartitionSpec(), PartitionSpec("rows")
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole, whole, split),
        out_specs=split,
        check_vma=False,
    )(x, y, rows)
