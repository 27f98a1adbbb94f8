"""Checks of networks at the start of a run, by tracing them: nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.core.binding import Network
from distilljax.training.roles import Setup
from distilljax.training.state import leaves, moving, parameter_shapes

# What jax leaves in a trace of a forward derivative through `jax.custom_vjp`.
_NO_RULE = "custom_lin"


def check_networks(setup: Setup, first: Mapping[str, Any]) -> None:
    """Checks parameters, forward derivatives and conditions of the networks of a run.

    Args:
      setup: what the programs of the run share.
      first: the first batch, ``[n, accumulate, B, ...]``.

    Raises:
      ValueError: naming role, network and leaf, for a parameter that has no gradient,
        or a network without forward mode whose role needs a jvp; for conditions that no
        network reads, unless ``ignore_cond`` says so.
    """
    shapes = parameter_shapes(setup)
    _check_leaves(setup, shapes)
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *np.shape(leaf)[3:]), leaf.dtype),
        first.get("cond"),
    )
    _check_forward(setup, shapes, one)
    _check_read(setup, shapes, one)


def _check_leaves(setup: Setup, shapes: Mapping[str, Any]) -> None:
    for role in moving(setup):
        for name, leaf in leaves(shapes[role]).items():
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise ValueError(
                    f"role {role!r}: parameter {name!r} of network "
                    f"{setup.networks[role].name!r} must be floating to be trained, "
                    f"got {leaf.dtype}{list(leaf.shape)}. Tables and keys are no "
                    "parameters: make them constants inside apply, and take keys as "
                    "rng="
                )


def _arguments(setup: Setup, network: Network, params: Any, cond: Any) -> tuple:
    """Shapes of the arguments of a network's apply, one sample."""
    shape = (1, *setup.sample_shape)
    x, t = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (1,)))
    s = t if "second_time" in network.capabilities else None
    return params, x, t, cond, s


def _check_forward(setup: Setup, shapes: Mapping[str, Any], cond: Any) -> None:
    """Refuses networks that jax cannot differentiate forwards where a role needs it."""
    for role, record in setup.method.roles.items():
        network = setup.networks[role]
        if "jvp" not in record.needs or network.apply is None or role not in shapes:
            continue

        def tangent(params, x, t, cond, s, apply=network.apply):
            options = () if s is None else (s,)

            def at(x, t):
                return apply(params, x, t, cond, *options)

            return jax.jvp(at, (x, t), (jnp.ones_like(x), jnp.ones_like(t)))

        given = _arguments(setup, network, shapes[role], cond)
        why: Exception | None = None
        try:
            missing = _holds(jax.make_jaxpr(tangent)(*given).jaxpr, _NO_RULE)
        except (TypeError, NotImplementedError) as error:
            # Others come from the network itself, and are its own to tell.
            missing, why = "forward-mode" in str(error), error
            missing |= isinstance(error, NotImplementedError)
        if missing:
            raise ValueError(
                f"role {role!r}: method {setup.method.name!r} takes a forward "
                f"derivative (jax.jvp) of network {network.name!r}, which has none: "
                "something in it is a jax.custom_vjp or a kernel without a jvp rule, "
                "as fused attention often is. Use a network without it, or pass "
                "derivative=losses.finite_difference() to a method that takes it "
                "('finite_difference()' in a card)"
            ) from why


def _holds(jaxpr: Any, primitive: str) -> bool:
    """Whether a program or one inside it has an operation of that name."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == primitive:
            return True
        for leaf in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns") and _holds(inner, primitive):
                return True
    return False


def _check_read(setup: Setup, shapes: Mapping[str, Any], cond: Any) -> None:
    """Refuses conditions that no network looks at: a model without classes."""
    ignored = setup.config.ignore_cond
    if not jax.tree.leaves(cond):
        if ignored:
            raise ValueError(
                "ignore_cond says that conditions of the source are ignored, and it "
                "has none ('cond'); leave it out"
            )
        return
    if "cond" in setup.method.batch:
        return
    for role, network in setup.networks.items():
        # Of others it is not known what they read.
        if network.apply is None or network.functions or role not in shapes:
            return
        if _reads(setup, network, shapes[role], cond):
            if ignored:
                raise ValueError(
                    f"ignore_cond says that conditions are ignored, and network "
                    f"{network.name!r} of role {role!r} reads them; leave it out, or "
                    "build the network without num_classes= and cond_features="
                )
            return
    if ignored:
        return
    names = sorted({network.name for network in setup.networks.values()})
    kinds = sorted({f"{x.dtype}{[*x.shape[1:]]}" for x in jax.tree.leaves(cond)})
    raise ValueError(
        f"the source has labels or other conditions ('cond', {', '.join(kinds)} a "
        f"sample), and no network reads them ({', '.join(names)}): the student would "
        "be unconditional. Build the network with num_classes= for integer labels "
        "(floats [N] are turned into them by cond.astype('int32')) or cond_features= "
        "for embeddings, leave 'cond' out of the source, or say ignore_cond=True "
        "(--config.ignore_cond=True) if that is meant"
    )


def _reads(setup: Setup, network: Network, params: Any, cond: Any) -> bool:
    def call(cond, params, x, t, s):
        options = () if s is None else (s,)
        return network.apply(params, x, t, cond, *options)  # type: ignore[misc]

    params, x, t, cond, s = _arguments(setup, network, params, cond)
    traced = jax.make_jaxpr(call)(cond, params, x, t, s).jaxpr
    own = traced.invars[: len(jax.tree.leaves(cond))]
    used = [v for eqn in traced.eqns for v in eqn.invars] + list(traced.outvars)
    return any(mine is other for mine in own for other in used)
