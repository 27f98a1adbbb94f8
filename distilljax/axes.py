"""Arrays whose types say how they are split over a mesh of explicit axes.

Elsewhere these functions do nothing of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, auto_axes

Array = jax.Array


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
