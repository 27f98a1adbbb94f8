"""The fused dmd2 cycle against its separately jitted parts.

Fused, a cycle is one program: a scan over the critic's updates, the student's update,
the evaluation EMA. The parts are one program for a critic update, called for each of
them, and one for the student's update with the EMA; the state is donated from one to
the next.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax

from benchmarks import measure, workload
from benchmarks.measure import Result, Scale
from distilljax.training import TrainState, build_cycle, phase_update
from distilljax.training.roles import Setup

STEPS = 5
LIMIT, GOAL = 1.05, 1.0

Cycle = Callable[[TrainState, Any, Mapping[str, Any]], TrainState]


def fused(setup: Setup) -> Cycle:
    """The trainer's cycle."""
    program = build_cycle(setup, setup.method.phases)
    return lambda state, frozen, batch: program(state, frozen, batch)[0]


def apart(setup: Setup) -> Cycle:
    """The same updates, a program each; the batch is a list with one for each."""
    critic, student = setup.method.phases

    @functools.partial(jax.jit, donate_argnums=0)
    def critic_update(state, frozen, batch):
        state, _, metrics = phase_update(
            setup, critic._replace(repeat=1), state, frozen, batch, {}
        )
        return state, metrics

    @functools.partial(jax.jit, donate_argnums=0)
    def student_update(state, frozen, batch):
        state, _, metrics = phase_update(setup, student, state, frozen, batch, {})
        decay = setup.config.role("student").ema
        ema = jax.tree.map(
            lambda a, b: decay * a + (1.0 - decay) * b,
            state.ema["student"],
            state.params["student"],
        )
        return state._replace(ema={"student": ema}, step=state.step + 1), metrics

    def cycle(state, frozen, batches):
        for batch in batches[:-1]:
            state, _ = critic_update(state, frozen, batch)
        return student_update(state, frozen, batches[-1])[0]

    return cycle


def pieces(batch: Mapping[str, jax.Array]) -> list[dict[str, jax.Array]]:
    """A cycle's batch ``[n, 1, B, ...]`` as ``n`` batches ``[1, 1, B, ...]``."""
    count = len(next(iter(batch.values())))
    return [{k: v[i : i + 1] for k, v in batch.items()} for i in range(count)]


def contender(cycle: Cycle, begun: workload.Start, batch: Any, steps: int):
    """Blocks of cycles on one state."""
    state = begun.state

    def step():
        nonlocal state
        state = cycle(state, begun.frozen, batch)
        return state

    return measure.timed(step, steps)


def run(scale: Scale) -> list[Result]:
    """All results of this file."""
    steps = scale.steps(STEPS)
    work = workload.card("dmd2", scale)
    one, other = workload.start(work), workload.start(work)
    with measure.compilations() as programs:
        whole = contender(fused(one.setup), one, one.batch, steps)
        whole()
    parts = contender(apart(other.setup), other, pieces(other.batch), steps)
    pairs = measure.interleaved(whole, parts, scale.pairs)
    return [
        measure.ratio(
            "dmd2 cycle",
            "one program over a program for every update",
            pairs,
            limit=LIMIT,
            goal=GOAL,
            steps=steps,
        ),
        measure.fact(
            "programs of a dmd2 cycle",
            "programs compiled for the fused cycle",
            len(programs),
            1,
            programs=programs,
        ),
    ]


if __name__ == "__main__":
    sys.exit(measure.main(run, "dmd2_cycle", __doc__))
