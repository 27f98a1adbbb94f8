"""Where arrays live: the mesh of a run, and the rules that place parameters on it.

A mesh has three axes. Batches are split over ``data`` and ``fsdp`` together, parameters
with everything that has their shape (optimizer states, followers, averages) over
``fsdp`` and ``tensor``. A network is gathered along ``fsdp`` a layer at a time, where
it is used; along ``tensor`` its products are computed in parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, reshard

from distilljax.runtime.axes import ROWS

AXES = (*ROWS, "tensor")
# Leaves with fewer elements are not worth a gather.
SMALLEST = 1024


class Rule(NamedTuple):
    """Places the parameters whose path matches.

    Attributes:
      match: regular expression, searched in the path, ``blocks/qkv/kernel``.
      axes: mesh axis, or None, of each of the last array axes; those before are whole,
        which leaves stacks of layers alone.
    """

    match: str
    axes: tuple[str | None, ...]


# Products in parts: split along what comes out, then along what goes in. The layers of
# embeddings called ``out`` have no partner and are small.
TENSOR = (
    Rule(r"(^|/)(qkv|up)/kernel$", (None, "tensor")),
    Rule(r"(^|/)(qkv|up)/bias$", ("tensor",)),
    Rule(
        r"(^|/)(?<!time/)(?<!second/)(?<!guidance/)(out|down)/kernel$",
        ("tensor", None),
    ),
)


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes ``data, fsdp, tensor``.

    Args:
      shape: devices by axis; axes that it lacks have one.
      devices: default the first ones of `jax.devices`.

    Raises:
      ValueError: if there are fewer devices than asked for, or if processes would be
        left without one.
    """
    sizes = tuple(shape.get(axis, 1) for axis in AXES)
    count = math.prod(sizes)
    found = jax.devices() if devices is None else list(devices)
    if count > len(found):
        raise ValueError(
            f"mesh {dict(shape)} asks for {count} devices and there are {len(found)}; "
            "lower it, or on a CPU set "
            "XLA_FLAGS=--xla_force_host_platform_device_count"
        )
    if devices is None and jax.process_count() > 1 and count != len(found):
        raise ValueError(
            f"mesh {dict(shape)} must hold all {len(found)} devices of the "
            f"{jax.process_count()} processes, it has {count}"
        )
    if devices is not None:
        return Mesh(np.asarray(found[:count]).reshape(sizes), AXES, _auto())
    return jax.make_mesh(sizes, AXES, axis_types=_auto(), devices=found[:count])


def _auto() -> tuple[AxisType, ...]:
    return (AxisType.Auto,) * len(AXES)


def rows(mesh: Mesh) -> int:
    """Parts into which a batch is split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def share(mesh: Mesh | None) -> tuple[int, int]:
    """``(index, count)``: the part of every batch that this process reads.

    Processes that hold the same rows, split along ``tensor``, read the same part.

    Raises:
      ValueError: if the rows of this process are no such part.
    """
    if mesh is None or jax.process_count() == 1:
        return 0, 1
    total = rows(mesh)
    held = sharding(mesh, ROWS).addressable_devices_indices_map((total,)).values()
    first = sorted({index[0].start or 0 for index in held if index is not None})
    width = len(first)
    whole = list(range(first[0], first[0] + width))
    if first != whole or total % width or first[0] % width:
        raise ValueError(
            f"process {jax.process_index()} holds the parts {first} of {total} of a "
            f"batch on the mesh {dict(mesh.shape)}, which are no equal share in a row; "
            "choose axes that the devices of a process divide"
        )
    return first[0] // width, total // width


def sharding(mesh: Mesh, *axes: str | tuple[str, ...] | None) -> NamedSharding:
    """Sharding of the leading axes over mesh axes; replicated without."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def put(tree: Any, places: Any) -> Any:
    """Arrays of a traced program where they shall be.

    Under explicit axes that changes their types, under others it is a constraint.
    """

    def one(x: jax.Array, place: NamedSharding) -> jax.Array:
        if AxisType.Explicit in place.mesh.axis_types:
            return reshard(x, place.spec)
        return jax.lax.with_sharding_constraint(x, place)

    return jax.tree.map(one, tree, places)


def placed(
    mesh: Mesh, path: str, shape: tuple[int, ...], rules: Sequence[Rule] | None = None
) -> NamedSharding:
    """Where a parameter lives.

    Args:
      mesh: with the axes of this module.
      path: of the leaf, joined by ``/``.
      shape: of the leaf.
      rules: the first that matches decides; a leaf without one is replicated. Default:
        the rules of ``TENSOR``, and the longest of the last two axes that ``fsdp``
        divides is split along it.

    Raises:
      ValueError: if a given rule has more axes than the leaf, or the mesh does not
        divide it.
    """
    rule = next((r for r in rules or TENSOR if re.search(r.match, path)), None)
    spec: list[str | None] = [None] * len(shape)
    if rule is not None and len(rule.axes) <= len(shape):
        spec[len(shape) - len(rule.axes) :] = rule.axes
    parts = [1 if axis is None else mesh.shape[axis] for axis in spec]
    wrong = [i for i, count in enumerate(parts) if shape[i] % count]
    if rules is not None:
        if wrong or (rule is not None and len(rule.axes) > len(shape)):
            raise ValueError(
                f"rule {tuple(rule or ())} does not fit parameter {path!r} of shape "
                f"{shape} on the mesh {dict(mesh.shape)}; the axes of a rule stand for "
                "the last axes of the array, which the mesh must divide"
            )
        return sharding(mesh, *spec)
    for i in wrong:
        spec[i] = None
    size = mesh.shape["fsdp"]
    if size > 1 and len(shape) > 1 and math.prod(shape) >= SMALLEST:
        free = [
            i
            for i in (len(shape) - 1, len(shape) - 2)
            if spec[i] is None and shape[i] % size == 0
        ]
        if free:
            spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return sharding(mesh, *spec)


def tree_shardings(
    mesh: Mesh | None, tree: Any, rules: Sequence[Rule] | None = None
) -> Any:
    """Shardings of a tree of parameters, or of what mirrors one (optimizer states).

    Args:
      mesh: the mesh; None gives None.
      tree: arrays or shapes. Paths of mirrors end like those of the parameters.
      rules: see `placed`.
    """
    if mesh is None:
        return None

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return placed(mesh, name, tuple(leaf.shape), rules)

    return jax.tree_util.tree_map_with_path(one, tree)
