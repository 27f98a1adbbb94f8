"""Arrays whose types say how they are split over a mesh of explicit axes.

Elsewhere these functions do nothing of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes

Array = jax.Array
# Mesh axes along which a batch is split. Along the first every device, or group of
# devices, holds all parameters.
ROWS = ("data", "fsdp")
PARTS = ROWS[0]


def looked_up(table: Array, index: Array | int) -> Array:
    """Rows ``table[index]``, split over devices as the index is.

    Under explicit axes an index alone leaves open whether it or the table moves.

    Args:
      table: ``[N, ...]``, whole on every device.
      index: integers of any shape.
    """
    split = jax.typeof(index).sharding
    if not any(split.spec):
        return table[index]
    spec = PartitionSpec(*split.spec, *(None,) * (table.ndim - 1))
    return table.at[index].get(out_sharding=NamedSharding(split.mesh, spec))


def with_parameters(x: Array, axis: int = 0, *, features: bool = False) -> Array:
    """A small array split as parameters are, so that it moves and they do not.

    A product of an array whose batch is split along ``fsdp`` with parameters that are
    split along it too gathers the parameters; this gathers the array.

    Args:
      x: any array.
      axis: of its batch, which stays split along ``data``.
      features: whether its last axis is split along ``fsdp``, as what parameters make
        is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return x
    count = mesh.shape.get(ROWS[1], 1)
    if count == 1 or x.shape[axis] % mesh.shape[PARTS]:
        return x
    spec = [None] * x.ndim
    spec[axis] = PARTS
    if features and x.shape[-1] % count == 0:
        spec[-1] = ROWS[1]
    if any(jax.typeof(x).sharding.spec):
        return jax.sharding.reshard(x, PartitionSpec(*spec))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def untyped(fn: Callable, *args: Any) -> Callable:
    """A function under explicit axes as it runs under others.

    It need not say of every reshape and lookup how the result is split; what it returns
    is split along the batch like the first of the arrays that it gets.

    Args:
      fn: function of arrays with the batch first.
      *args: its arguments, by whose types it is decided.
    """
    arrays = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
    split = [jax.typeof(leaf).sharding for leaf in arrays]
    split = [one for one in split if any(one.spec)]
    if not split:
        return fn
    place = NamedSharding(split[0].mesh, PartitionSpec(split[0].spec[0]))
    return auto_axes(fn, out_sharding=place)


def by_parts(fn: Callable, rows: Any, *args: Any) -> Any:
    """A function of parameters and a batch, every part of the batch by itself.

    Args:
      fn: ``(params, *args)``; arrays that it gets and all that it returns have the
        batch first, and the samples of a batch do not see each other.
      rows: parameters ``[parts, ...]``, a row for every part.
      *args: its arguments; scalars and what has no batch are given to every part.

    Returns:
      What ``fn(params, *args)`` is with equal rows, or None if the batch of the
      arguments is not divided by the parts.
    """
    mesh = jax.sharding.get_abstract_mesh()
    found = [x.shape[0] for x in jax.tree.leaves(args) if jnp.ndim(x)]
    count = jax.tree.leaves(rows)[0].shape[0]
    if mesh.empty or not found or found[0] % math.prod(mesh.shape[a] for a in ROWS):
        return None
    # All axes by hand where no other one splits anything: the compiler then sees the
    # program of one device.
    axes = tuple(mesh.axis_names) if mesh.size == count else (PARTS,)
    split = PartitionSpec(axes)

    def place(x: Any) -> PartitionSpec:
        return split if jnp.ndim(x) and x.shape[0] == found[0] else PartitionSpec()

    def one(rows: Any, *args: Any) -> Any:
        return fn(jax.tree.map(lambda x: x[0], rows), *args)

    return jax.shard_map(
        one,
        in_specs=(jax.tree.map(lambda _: split, rows), *jax.tree.map(place, args)),
        out_specs=split,
        axis_names=set(axes),
        check_vma=False,
    )(rows, *args)
