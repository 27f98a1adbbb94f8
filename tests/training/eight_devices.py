"""Run in its own process on 8 fake devices; prints what `test_sharding` checks."""

import json
import sys
import tempfile

import jax
import numpy as np

from distilljax.core.method import Method, Phase, Role, Term, batches, check
from distilljax.training import (
    build_cycle,
    create_frozen,
    create_state,
    make_setup,
    run_mesh,
    train,
)
from distilljax.training.collectives import collectives
from distilljax.training.config import TrainConfig
from distilljax.training.feed import place
from tests.training import small
from tests.training.test_cycle import NETWORKS
from tests.training.test_state import TEACHER

SIZE = 1024


def far(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs)


def summed(method, **roles):
    """All-reduces of a cycle on 8 devices: bytes outside and inside loops."""
    setup, arguments = built(method, 8, **roles)
    compiled = build_cycle(setup, method.phases).lower(*arguments).compile()
    found = [c for c in collectives(compiled) if c.kind == "all-reduce"]
    params = arguments[0].params["student"]
    return {
        "once": sum(c.bytes for c in found if not c.looped),
        "looped": sum(c.bytes for c in found if c.looped),
        "gradient": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    }


def several(count):
    """A student that is applied several times in an update."""
    terms = tuple(
        Term(f"fit_{i}", small.velocity_error("student")) for i in range(count)
    )
    phase = Phase("student", ("student",), terms)
    return check(Method("several", {"student": Role(init="random")}, (phase,)))


def built(method, devices, **roles):
    config = TrainConfig.of(
        {"batch_size": SIZE, "cycles": 9, "mesh": {"data": devices}, **roles}
    )
    setup = make_setup(method, NETWORKS, config, (2,), run_mesh(config))
    given = {"teacher": TEACHER} if "teacher" in method.roles else {}
    state, frozen = create_state(setup, given), create_frozen(setup, given)
    stacked = setup.stacked
    batch = next(small.Stream(batches(method.phases), stacked, SIZE // stacked))
    return setup, (state, frozen, place(setup, batch))


def program(method, devices, **roles):
    setup, (state, frozen, batch) = built(method, devices, **roles)
    cycle = build_cycle(setup, method.phases).lower(state, frozen, batch).compile()
    flops = cycle.cost_analysis()["flops"]
    for _ in range(2):
        state, metrics = cycle(state, frozen, batch)
    return state, metrics, flops


def compare(method, **roles):
    one, logs, flops = program(method, 1, **roles)
    eight, other_logs, share = program(method, 8, **roles)
    leaf = jax.tree.leaves(eight.params)[0]
    return {
        "params": far(one.params, eight.params),
        "metrics": far(logs, other_logs),
        "flops": share / flops,
        "devices": len(leaf.sharding.device_set),
        "replicated": leaf.sharding.is_fully_replicated,
    }


def resumed():
    config = {"batch_size": 64, "mesh": {"data": 8}, "student": {"lr": 1e-2}}
    method = small.regression()
    with tempfile.TemporaryDirectory() as folder:
        for cycles in (3, 6):
            part = train(
                method, NETWORKS, None, small.Stream(size=64),
                {**config, "cycles": cycles}, folder, progress=False,
            )  # fmt: skip
    whole = train(
        method, NETWORKS, None, small.Stream(size=64), {**config, "cycles": 6},
        progress=False,
    )  # fmt: skip
    return far(part.state.params, whole.state.params)


if __name__ == "__main__":
    accumulate = {"fake": {"accumulate": 4}, "student": {"accumulate": 2}}
    results = {
        "data_free": compare(small.critic_and_student(2)),
        "accumulated": compare(small.critic_and_student(2), **accumulate),
        "resumed": resumed(),
        "summed": [
            summed(several(1)),
            summed(several(3)),
            summed(several(1), student={"accumulate": 4}),
        ],
    }
    json.dump(results, sys.stdout)
