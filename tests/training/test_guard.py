"""Updates that are not finite change nothing, wherever the numbers are lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import paths
from distilljax.binding import Network
from distilljax.method import Method, Phase, Role, Term, check
from distilljax.training import build_cycle, create_state, make_setup
from distilljax.training.config import TrainConfig
from distilljax.training.cycle import run_cycle
from tests.training import small

SIZE = 8


def linear(width=4, unused=jnp.float16):
    """A linear network with a leaf that nothing uses.

    Adam divides its zero gradient by ``0 + eps``, and 1e-8 is zero in float16.
    """

    def init(key):
        w = 0.1 * jax.random.normal(key, (width + 1, width))
        return {"w": w, "unused": jnp.ones(3, unused)}

    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        return jnp.concatenate([x, t[:, None]], -1) @ params["w"]

    return Network("linear", apply, init, paths.linear(), "velocity")


def built(method, network=None, *, width=4, **config):
    config = TrainConfig.of({"batch_size": SIZE, "cycles": 9, **config})
    networks = {"backbone": linear(width) if network is None else network}
    return make_setup(method, networks, config, (width,))


def counting(**phase):
    """Flow matching that counts its updates in memory."""

    def loss(ctx):
        from distilljax.method import Out

        out = small.velocity_error("student")(ctx)
        return Out(out, memory={"count": ctx.memory["count"] + 1})

    terms = (Term("fit", loss), Term("again", small.velocity_error("student")))
    return check(
        Method(
            "counting",
            {"student": Role(init="random")},
            (Phase("student", ("student",), terms, **phase),),
            memory=lambda batch_size, shape: {"count": jnp.zeros((), jnp.int32)},
        )
    )


def added(grads, step):
    return jax.tree.map(jnp.add, grads["fit"], grads["again"])


def batch_of(setup, width=4, repeat=1):
    shape = (repeat, setup.stacked, SIZE // setup.stacked, width)
    return {"x0": np.random.default_rng(0).normal(size=shape).astype(np.float32)}


WAYS = {
    "plain": ({}, 1),
    "accumulate": ({}, 2),
    "merge": ({"merge": added}, 1),
    "repeat": ({"repeat": 3}, 1),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_update_that_an_optimizer_loses_changes_nothing(way):
    phase, accumulate = WAYS[way]
    setup = built(counting(**phase), default={"accumulate": accumulate})
    state, repeat = create_state(setup), phase.get("repeat", 1)
    before = jax.device_get((state.params, state.opt, state.memory))
    cycle = build_cycle(setup, setup.method.phases)
    state, metrics = cycle(state, {}, batch_of(setup, repeat=repeat))
    after = jax.device_get((state.params, state.opt, state.memory))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert np.isfinite(metrics["grad_norm/student"])
    assert int(metrics["skipped/student"]) == int(metrics["skipped_in_a_row"]) == repeat
    # The same with an optimizer that loses nothing.
    setup = built(
        counting(**phase), default={"accumulate": accumulate, "optimizer": "sgd"}
    )
    state, metrics = build_cycle(setup, setup.method.phases)(
        create_state(setup), {}, batch_of(setup, repeat=repeat)
    )
    assert int(metrics["skipped/student"]) == 0
    assert int(state.memory["count"]) == repeat * accumulate
    assert not np.array_equal(before[0]["student"]["w"], state.params["student"]["w"])


def test_seeds_of_one_program_are_guarded_apart():
    setup = built(small.regression(), linear(unused=jnp.float32))
    state = create_state(setup)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), (state.params, state.opt))
    x0 = batch_of(setup)["x0"]

    def one(params, opt, x0):
        new, metrics = run_cycle(
            setup, setup.method.phases, state._replace(params=params, opt=opt), {}, x0
        )
        return new.params, metrics["skipped/student"]

    data = {"x0": np.stack([x0, np.nan * x0])}
    params, skipped = jax.jit(jax.vmap(one))(*both, data)
    assert skipped.tolist() == [0, 1]
    start = state.params["student"]["w"]
    assert not np.array_equal(params["student"]["w"][0], start)
    np.testing.assert_array_equal(params["student"]["w"][1], start)


@pytest.mark.parametrize("repeat", [1, 2])
def test_parameters_and_moments_are_replaced_where_they_are(repeat):
    width = 256
    setup = built(
        small.regression(repeat=repeat),
        linear(width, jnp.float32),
        width=width,
        student={"clip": 1.0},
    )
    state, batch = create_state(setup), batch_of(setup, width, repeat)
    cycle = build_cycle(setup, setup.method.phases)
    compiled = cycle.lower(state, {}, batch).compile()
    size = state.params["student"]["w"].nbytes
    # The gradient; not the new parameters and moments beside the old ones.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * size
