"""A copy of the trained parameters for every part of a batch.

Where a batch is split over devices, the gradient of a parameter is a sum over them. A
compiler that sees one array of parameters sums wherever the array is used: once an
application of a network and once a microbatch, in the network's compute dtype. Here
every part of the batch is given an array of its own, a row of ``[parts, ...]``, and the
gradient is taken with respect to the rows. Rows are added up where they are, over
applications, repetitions inside a rollout and microbatches, and summed over devices
once, in float32.

The parts are those of the mesh axis ``data``. What is split along ``fsdp`` is gathered
and its gradient scattered in every layer, since no device has room for all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from distilljax.runtime.axes import PARTS
from distilljax.training.roles import Setup

Array = jax.Array
Trees = Mapping[str, Any]


def parts(setup: Setup, role: str) -> int:
    """Rows of a role's parameters; 1 stands for the parameters themselves.

    There is one where nothing is summed over devices, and for a role with dropout: its
    masks are drawn for the whole batch, so that they do not depend on the devices.
    """
    mesh = setup.mesh
    if mesh is None or AxisType.Explicit in mesh.axis_types:
        return 1
    return 1 if role in setup.with_dropout else mesh.shape[PARTS]


def _rows(setup: Setup, role: str, tree: Any) -> Any:
    """Arrays ``[parts, ...]`` with a row on the devices of its part."""
    assert setup.mesh is not None
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
    places = setup.shardings(role, shapes)
    return jax.tree.map(
        lambda x, place: jax.lax.with_sharding_constraint(
            x, NamedSharding(place.mesh, PartitionSpec(PARTS, *place.spec))
        ),
        tree,
        places,
    )


def _filled(setup: Setup, role: str, tree: Any) -> Any:
    count = parts(setup, role)
    if count == 1:
        return tree
    wide = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (count, *x.shape)), tree)
    return _rows(setup, role, wide)


def spread(setup: Setup, params: Trees) -> dict[str, Any]:
    """A row of every parameter for every part; the parameters where there is one."""
    return {role: _filled(setup, role, tree) for role, tree in params.items()}


def summed(setup: Setup, grads: Trees) -> dict[str, Any]:
    """Gradients where the parameters are, out of those with respect to the rows."""

    def one(role: str, tree: Any) -> Any:
        if parts(setup, role) > 1:
            tree = jax.tree.map(lambda g: jnp.sum(g, axis=0), tree)
        return setup.placed(role, tree)

    return {role: one(role, tree) for role, tree in grads.items()}


def zeros(setup: Setup, rows: Trees) -> dict[str, Any]:
    """Where gradients with respect to rows are added up, in float32 at least."""

    def one(x: Array) -> Array:
        return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))

    def placed(role: str, tree: Any) -> Any:
        made = jax.tree.map(one, tree)
        if parts(setup, role) > 1:
            return _rows(setup, role, made)
        return setup.placed(role, made)

    return {role: placed(role, tree) for role, tree in rows.items()}


def whole(setup: Setup, params: Trees, rows: Trees) -> dict[str, Any]:
    """The parameters, with the rows as what a gradient is taken for.

    For uses that are no application of a network to a batch.
    """
    return {role: _whole(setup, role, params[role], rows[role]) for role in rows}


def _whole(setup: Setup, role: str, params: Any, rows: Any) -> Any:
    count = parts(setup, role)
    if count == 1:
        return rows

    @jax.custom_vjp
    def one(rows):
        return params

    def back(_, grads):
        return (_filled(setup, role, jax.tree.map(lambda g: g / count, grads)),)

    one.defvjp(lambda rows: (params, None), back)
    return one(rows)


def derived(setup: Setup, trees: Trees, rows: Trees, step: Array) -> dict[str, Any]:
    """Rows by role, of those that have several and those derived from them.

    Args:
      setup: what the programs share.
      trees: parameters by role, as terms see them.
      rows: by trained role.
      step: the cycle.
    """
    out = {role: tree for role, tree in rows.items() if parts(setup, role) > 1}
    for name, role in setup.method.roles.items():
        reads = set(getattr(role.derive, "reads", out)) & set(out)
        if reads and role.derive is not None and parts(setup, name) > 1:
            others = {k: v for k, v in trees.items() if k not in out}

            def derive(own, others=others, role=role):
                return role.derive({**others, **own}, step)

            made = jax.vmap(derive, spmd_axis_name=PARTS)(out)
            out[name] = _rows(setup, name, made)
    return out
