"""Reductions over all pairs of two feature sets, in blocks and over devices.

Every pairwise statistic is a function of the squared distances from one row to all rows
of another set. `over_rows` evaluates such a function for every row without ever holding
more than a block of distances, splits the rows over the devices of a mesh, and works in
float64 whatever the process is set to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation.inputs import check_features, check_same_width

Array = NDArray[np.float64]
Reduce = Callable[[jax.Array, jax.Array, Any], Any]

_BLOCK_ELEMENTS = 2**22
# A processor passes several times over a block, which its cache should hold; but a
# product of few rows waits for the memory too.
_CACHED_ELEMENTS, _LEAST_ROWS = 2**17, 64
_ROWS = PartitionSpec("rows")


def check_pair(
    first: str, a: ArrayLike, second: str, b: ArrayLike, least: int = 2
) -> tuple[Array, Array]:
    """Two feature sets of one width in float64; see `check_features`."""
    x, y = check_features(first, a, least), check_features(second, b, least)
    check_same_width(first, x, second, y)
    return x, y


def rounding(a: Array, b: Array) -> float:
    """Squared distances below this cannot be told from 0."""
    centre = b.mean(0)
    largest = max(np.square(x - centre).sum(1).max() for x in (a, b))
    return 16 * a.shape[1] * np.finfo(np.float64).eps * float(largest)


def row_mesh(mesh: Mesh | None) -> Mesh:
    """The devices of a mesh in one row, or the host's processor alone.

    Args:
      mesh: any mesh of this process's devices, whatever its axes. None is the host's
        CPU where the process may use it, so that float64 is native on every machine.

    Raises:
      ValueError: the mesh holds devices of other processes.
    """
    if mesh is None:
        try:
            device = jax.local_devices(backend="cpu")[0]
        except RuntimeError:
            device = jax.local_devices()[0]
        return Mesh(np.array([device]), ("rows",))
    devices = mesh.devices.ravel()
    others = sum(d.process_index != jax.process_index() for d in devices)
    if others:
        raise ValueError(
            f"mesh must hold devices of this process, got {others} of others among "
            f"{len(devices)}; make one of jax.local_devices() and merge the processes' "
            "Moments, or evaluate in one process."
        )
    return Mesh(devices, ("rows",))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def program(
    reduce: Reduce,
    mesh: Mesh,
    block: int,
    a: jax.Array,
    index: jax.Array,
    b: jax.Array,
    shared: Any,
) -> Any:
    """`over_rows` on placed arrays of whole blocks; see `prepare`."""

    def local(a: jax.Array, index: jax.Array, b: jax.Array, shared: Any) -> Any:
        norms = (b * b).sum(1)

        def step(rows: tuple[jax.Array, jax.Array]) -> Any:
            x, i = rows
            squared = (x * x).sum(1)[:, None] + norms - 2.0 * (x @ b.T)
            return reduce(jnp.maximum(squared, 0.0), i, shared)

        blocks = (a.reshape(-1, block, a.shape[1]), index.reshape(-1, block))
        out = jax.lax.map(step, blocks)
        return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), out)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_ROWS, _ROWS, PartitionSpec(), PartitionSpec()),
        out_specs=_ROWS,
        check_vma=False,
    )(a, index, b, shared)


def prepare(
    reduce: Reduce, a: Array, b: Array, shared: Any, mesh: Mesh | None
) -> tuple[Any, ...]:
    """The arguments with which `over_rows` calls its program, placed on the devices."""
    line = row_mesh(mesh)
    # Squares about b's mean keep the cancellation of |a|^2 + |b|^2 - 2 a.b small.
    centre = b.mean(0)
    share = -(-len(a) // line.size)
    block = max(1, min(share, _BLOCK_ELEMENTS // len(b)))
    if line.devices.flat[0].platform == "cpu":
        block = min(block, max(_LEAST_ROWS, _CACHED_ELEMENTS // len(b)))
    rows = line.size * block * -(-share // block)
    padded = np.zeros((rows, a.shape[1]))
    padded[: len(a)] = a - centre
    split, whole = NamedSharding(line, _ROWS), NamedSharding(line, PartitionSpec())
    return (
        reduce,
        line,
        block,
        jax.device_put(padded, split),
        jax.device_put(np.arange(rows, dtype=np.int32), split),
        jax.device_put(b - centre, whole),
        jax.device_put(shared, whole),
    )


def over_rows(
    reduce: Reduce, a: Array, b: Array, shared: Any = (), *, mesh: Mesh | None = None
) -> Any:
    """Reduces the squared distances from every row of `a` to all rows of `b`.

    Args:
      reduce: ``(squared [r, M], index [r], shared) -> values [r, ...]`` in jax, with
        the rows' numbers in `index`. Equal functions share one compiled program: pass
        a function of a module or a frozen dataclass, and numbers through `shared`.
      a: ``[N, D]`` float64; its rows are split over the devices.
      b: ``[M, D]`` float64; every device holds all of it.
      shared: arrays or numbers for `reduce`, on every device.
      mesh: see `row_mesh`.

    Returns:
      What `reduce` returns, ``[N, ...]``, as numpy arrays.

    Numerics:
      ``|a|^2 + |b|^2 - 2 a.b`` about the mean of `b`, clipped at 0; `rounding` bounds
      what is left of the cancellation. At most 2^22 distances a device are held at once
      (or one row's, if `b` is longer); on a CPU 2^17, or those of 64 rows.
    """
    with jax.enable_x64(True):
        out = program(*prepare(reduce, a, b, shared, mesh))
    return jax.tree.map(lambda v: np.asarray(v)[: len(a)], out)


def without_self(squared: jax.Array, index: jax.Array) -> jax.Array:
    """Distances of a set to itself with every row's own set to infinity."""
    own = jnp.arange(squared.shape[1]) == index[:, None]
    return jnp.where(own, jnp.inf, squared)
