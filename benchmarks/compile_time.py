"""Compiling the cycle of every method of the catalogue, in processor seconds.

The networks are at most 32 wide, and the settings those with which the tests of the
catalogue hold every method to its contract (``tests/methods/cases.py``): what is
measured is how large a method's program is. XLA optimises as little as in the tests,
which compile every method's program (``tests/conftest.py``); with its own settings it
takes about three times as long. Held is the mean, so that the time of all grows no
faster than the catalogue; the slowest are named.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.measure import Result, Scale
from distilljax import methods
from distilljax.core.method import batches
from distilljax.training import build_cycle
from distilljax.training.state import (
    frozen_roles,
    parameter_shapes,
    state_shapes,
)

# Mean processor seconds of a method.
LIMIT = 4.0
BATCH = 16
# What the tests ask of XLA.
OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}
TINY = ("flow_matching", "scm")


def seconds(name: str) -> float:
    """Processor seconds in which a method's cycle is traced, lowered and compiled."""
    from tests.methods import cases

    built = cases.method(name)
    setup = cases.joined(cases.networks(), built, batch_size=BATCH)
    shapes = parameter_shapes(setup)
    frozen = {role: shapes[role] for role in frozen_roles(setup)}
    lead = (batches(built.phases), 1, BATCH)
    batch = {
        "x0": jax.ShapeDtypeStruct((*lead, *cases.SHAPE), jnp.float32),
        "cond": jax.ShapeDtypeStruct(lead, jnp.int32),
    }
    state = state_shapes(setup)
    # What an earlier method has traced helps no run of this one.
    jax.clear_caches()
    began = time.process_time()
    lowered = build_cycle(setup, built.phases).lower(state, frozen, batch)
    lowered.compile(compiler_options=OPTIONS)
    return time.process_time() - began


def compare(names: Sequence[str]) -> Result:
    """The mean over methods, and what each takes, from the slowest on."""
    found = {name: seconds(name) for name in names}
    slowest = sorted(found, key=found.__getitem__, reverse=True)
    told = ", ".join(f"{name} {found[name]:.1f}" for name in slowest[:3])
    mean = sum(found.values()) / len(found)
    return {
        "name": "compiling a method [CPU s]",
        "what": f"mean over {len(found)} methods; slowest: {told}",
        "value": mean,
        "limit": LIMIT,
        "goal": LIMIT,
        "passed": mean <= LIMIT,
        "methods": {name: round(found[name], 2) for name in slowest},
    }


def run(scale: Scale) -> list[Result]:
    """All results of this file."""
    names = TINY if scale.tiny else tuple(sorted(methods.CATALOGUE))
    return [compare(names)]


if __name__ == "__main__":
    sys.exit(measure.main(run, "compile_time", __doc__))
