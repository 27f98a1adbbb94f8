"""Activations stay split along the batch, whatever the parameters are split along.

A compiler that sees only where parameters and batch live may multiply parts of a weight
by the whole batch and sum the results over the devices, which moves activations where
gathering one layer's weights would do.
"""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType, PartitionSpec

from distilljax.runtime.axes import ROWS

Array = jax.Array


def rows_first(h: Array) -> Array:
    """An activation, its first axis split over the mesh axes ``data`` and ``fsdp``.

    The mesh is the one that is set around the trace (`jax.set_mesh`); without one, with
    other axes, with explicit axes (where types say it already) or for a batch that it
    does not divide, this is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(ROWS) <= set(mesh.axis_names):
        return h
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    # Inside a part of the batch (`axes.by_parts`) the first axis is split already.
    axes = tuple(axis for axis in ROWS if kinds[axis] is not AxisType.Manual)
    count = math.prod(mesh.shape[axis] for axis in axes)
    typed = any(kinds[axis] is AxisType.Explicit for axis in axes)
    if not axes or typed or h.shape[0] % count:
        return h
    free = (PartitionSpec.UNCONSTRAINED,) * (h.ndim - 1)
    return jax.lax.with_sharding_constraint(h, PartitionSpec(axes, *free))
