"""What training costs, in evaluations of the student network.

The unit is one forward pass of the student on one sample; with it a tangent costs one
more and a gradient two more. Counted are the multiplications of matrices and
convolutions in the traced program, which no compiler option changes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distilljax.core.method import Phase, batches
from distilljax.training.cycle import run_cycle
from distilljax.training.roles import Setup
from distilljax.training.state import abstract, frozen_roles, parameter_shapes


def matmul_flops(fn: Callable, *args: Any, trips: float | None = None) -> float:
    """Floating-point operations of matrix products and convolutions of a function.

    Results that nothing needs are not counted; of a ``cond`` the dearest branch is.

    Args:
      fn: function of arrays, jitted or not.
      *args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
      trips: mean length of loops of unknown length.

    Raises:
      ValueError: if the program has a loop of unknown length with a product in it, and
        no mean length is given.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    return _count(jaxpr, _all(jaxpr), trips)


def _count(jaxpr: Any, live_out: Sequence[bool], trips: float | None) -> float:
    """Operations of the equations on which live outputs depend."""
    live = {id(v) for v, used in zip(jaxpr.outvars, live_out, strict=True) if used}
    total = 0
    for eqn in reversed(jaxpr.eqns):
        used = [id(v) in live for v in eqn.outvars]
        if not any(used) and not eqn.effects:
            continue
        live |= {id(v) for v in eqn.invars}
        total += _cost(eqn, used, trips)
    return total


def _cost(eqn: Any, used: list[bool], trips: float | None) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * depth * eqn.outvars[0].aval.size
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        taps = kernel.size // features
        # A dilated input is mostly zeros that are never multiplied.
        return 2 * taps * eqn.outvars[0].aval.size // math.prod(params["lhs_dilation"])
    if name == "scan":
        body = _open(params["jaxpr"])
        # Stacked results have one axis more than the body's, the carry has not.
        carry = sum(
            outer.aval.shape == inner.aval.shape
            for outer, inner in zip(eqn.outvars, body.outvars, strict=True)
        )
        return params["length"] * _count(body, [True] * carry + used[carry:], trips)
    if name == "while":
        parts = [_open(params["cond_jaxpr"]), _open(params["body_jaxpr"])]
        once = sum(_count(part, _all(part), trips) for part in parts)
        if once and trips is None:
            raise ValueError(
                "cannot count a while loop with matrix products: its length is not "
                "known; use lax.scan, or fori_loop with fixed bounds, or say how long "
                "it is in the mean (trips)"
            )
        return once * (trips or 0)
    if name == "cond":
        return max(_count(_open(b), used, trips) for b in params["branches"])
    # What every part of a batch does by itself is written down once, see `by_parts`.
    by_hand = params["newly_manual_axes"] if name == "shard_map" else ()
    times = math.prod(params["mesh"].shape[axis] for axis in by_hand)
    return times * sum(
        _count(inner, used if len(used) == len(inner.outvars) else _all(inner), trips)
        for inner in _inner(params)
    )


def _all(jaxpr: Any) -> list[bool]:
    return [True] * len(jaxpr.outvars)


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _inner(params: Mapping[str, Any]) -> list[Any]:
    """Programs inside an equation: jit, remat, custom derivatives."""
    return [_open(v) for v in params.values() if hasattr(_open(v), "eqns")]


def forward_flops(setup: Setup, role: str = "student") -> int:
    """Operations of one forward pass of a role's network on one sample."""
    network = setup.networks[role]
    params = jax.eval_shape(network.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *setup.sample_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    cond = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[3:]), leaf.dtype),
        setup.batch.get("cond"),
    )
    s = t if "second_time" in network.capabilities else None
    assert network.apply is not None
    return matmul_flops(network.apply, params, x, t, cond, s)


def cycle_evaluations(
    setup: Setup, phases: tuple[Phase, ...], trips: float | None = None
) -> float:
    """Cost of one cycle in forward passes of the student's network on one sample.

    Args:
      setup: what the programs of a run share, with the shapes of its batch.
      phases: phases of the cycle.
      trips: mean length of loops of drawn length, see `matmul_flops`.
    """
    given = parameter_shapes(setup)
    frozen = {name: given[name] for name in frozen_roles(setup)}
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (batches(phases), *leaf.shape[1:]), leaf.dtype
        ),
        dict(setup.batch),
    )
    cycle = functools.partial(run_cycle, setup, phases)
    shapes = abstract(setup, given)
    total = matmul_flops(cycle, shapes, frozen, batch, trips=trips)
    return total / forward_flops(setup)


def run_evaluations(
    setup: Setup, cycles: int | None = None, trips: float | None = None
) -> float:
    """Cost of a run in forward passes of the student's network on one sample.

    Args:
      setup: what the programs of a run share, with the shapes of its batch.
      cycles: cycles of the run; default those of its config.
      trips: mean length of loops of drawn length, see `matmul_flops`.
    """
    cycles = setup.config.cycles if cycles is None else cycles
    total, start = 0.0, 0
    for until, phases in (*setup.method.stages, (cycles, setup.method.phases)):
        length = max(min(until, cycles) - start, 0)
        total += length * cycle_evaluations(setup, phases, trips) if length else 0.0
        start += length
    return total
