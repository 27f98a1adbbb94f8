"""Matrix products of the scm update: one jvp gives primal and tangent.

Counted are the ``dot_general`` of lowered programs: of the whole cycle, and of the
passes that it is made of. A forward pass of the student that were computed for itself,
beside the one inside the jvp, would show as F more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure, workload
from benchmarks.measure import Result, Scale
from distilljax.core.binding import Bound
from distilljax.training import build_cycle
from distilljax.training.cost import cycle_evaluations


def products(lowered: jax.stages.Lowered) -> int:
    """Matrix products that one run of a lowered program executes.

    Raises:
      ValueError: if a loop holds one, which would count once.
    """
    functions = {
        op.operation.attributes["sym_name"].value: op
        for op in lowered.compiler_ir().body
    }

    def total(op: Any) -> int:
        op = op.operation
        if op.name == "stablehlo.dot_general":
            return 1
        if op.name == "func.call":
            return total(functions[op.attributes["callee"].value])
        inner = sum(
            total(child) for region in op.regions for block in region for child in block
        )
        if op.name == "stablehlo.while" and inner:
            raise ValueError("products() counts programs without products in loops")
        return inner

    return total(functions["main"])


def lowered_products(fn: Callable, *args: Any) -> int:
    """Matrix products of a function of arrays."""
    return products(jax.jit(fn, keep_unused=True).lower(*args))


def counts(scale: Scale) -> dict[str, int]:
    """Matrix products of the scm cycle and of its passes."""
    work = workload.card("scm", scale)
    begun = workload.start(work)
    setup, network = begun.setup, work.networks["backbone"]
    path = work.method.sampling.path
    x0, cond = begun.batch["x0"][0, 0], begun.batch["cond"][0, 0]
    t = workload.times_like(x0, 0.7)
    params = begun.state.params["student"]

    def forward(params, x, t):
        f = Bound("student", network, params).flow_map(cond, path=path, two_time=False)
        return f.output(x, t, jnp.zeros_like(t))

    def tangent(params, x, t):
        return jax.jvp(lambda x, t: forward(params, x, t), (x, t), (x, t))

    def gradient(params, x, t):
        return jax.grad(lambda p: jnp.mean(forward(p, x, t) ** 2))(params)

    found = {
        "forward": lowered_products(forward, params, x0, t),
        "jvp": lowered_products(tangent, params, x0, t),
        "gradient": lowered_products(gradient, params, x0, t),
        "cycle": products(
            build_cycle(setup, work.method.phases).lower(
                begun.state, begun.frozen, begun.batch
            )
        ),
    }
    found["evaluations"] = cycle_evaluations(setup, work.method.phases)
    found["evaluations"] /= work.config.batch_size
    return found


def run(scale: Scale) -> list[Result]:
    """All results of this file."""
    found = counts(scale)
    tangent = found["jvp"] - found["forward"]
    return [
        measure.fact(
            "matrix products of an scm cycle",
            "teacher forward + (student forward and backward) + tangent alone",
            found["cycle"],
            found["forward"] + found["gradient"] + tangent,
            counts=found,
        )
    ]


if __name__ == "__main__":
    sys.exit(measure.main(run, "scm_jvp", __doc__))
