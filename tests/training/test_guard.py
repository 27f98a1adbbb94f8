"""Updates that are not finite change nothing, wherever the numbers are lost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distilljax import paths
from distilljax.core.binding import Network
from distilljax.core.method import Method, Out, Phase, Role, Term, check
from distilljax.training import build_cycle, create_state, make_setup, optimizers
from distilljax.training.config import RoleConfig, TrainConfig
from distilljax.training.cycle import run_cycle
from tests.training import small

SIZE = 8


def linear(width=4, unused=jnp.float32):
    """A linear network with a leaf that nothing uses."""

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


def losing(setup):
    """The same programs under an optimizer that loses the leaf without gradient."""

    def lose(updates, params):
        return {**updates, "unused": jnp.nan * updates["unused"]}

    lost = optax.chain(setup.optimizers["student"], optax.stateless(lose))
    return dataclasses.replace(setup, optimizers={"student": lost})


@pytest.mark.parametrize("way", WAYS)
def test_an_update_that_an_optimizer_loses_changes_nothing(way):
    phase, accumulate = WAYS[way]
    setup = losing(built(counting(**phase), default={"accumulate": accumulate}))
    state, repeat = create_state(setup), phase.get("repeat", 1)
    before = jax.device_get((state.params, state.opt, state.memory))
    cycle = build_cycle(setup, setup.method.phases)
    state, metrics = cycle(state, {}, batch_of(setup, repeat=repeat))
    after = jax.device_get((state.params, state.opt, state.memory))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert np.isfinite(metrics["grad_norm/student"])
    assert int(metrics["skipped/student"]) == int(metrics["skipped_in_a_row"]) == repeat


def test_a_leaf_without_gradient_in_a_narrow_dtype():
    """Adam's eps is zero in float16, and so is the root of the second moment."""
    found = {}
    for dtype in (jnp.float16, jnp.float32):
        setup = built(counting(), linear(unused=dtype))
        state = create_state(setup)
        start = np.asarray(state.params["student"]["w"])
        state, metrics = build_cycle(setup, setup.method.phases)(
            state, {}, batch_of(setup)
        )
        assert state.params["student"]["unused"].tolist() == [1.0, 1.0, 1.0]
        moved = not np.array_equal(start, state.params["student"]["w"])
        found[dtype] = (
            int(metrics["skipped/student"]),
            int(state.memory["count"]),
            moved,
        )
    assert found == {jnp.float16: (1, 0, False), jnp.float32: (0, 1, True)}


@pytest.mark.parametrize("size", [1e12, 1e25])
def test_a_gradient_that_adam_cannot_square(size):
    """Beyond the bound of its norm the update is looked at before it is made."""

    def loss(ctx):
        values = small.velocity_error("student")(ctx)
        return values * size

    method = Method(
        "large",
        {"student": Role(init="random")},
        (Phase("student", ("student",), (Term("fit", loss),)),),
    )
    setup = built(check(method))
    assert isinstance(setup.optimizers["student"], optimizers.Bounded)
    state = create_state(setup)
    before = jax.device_get((state.params, state.opt))
    state, metrics = build_cycle(setup, method.phases)(state, {}, batch_of(setup))
    assert metrics["grad_norm/student"] > optimizers.BOUND
    lost = size > 1e20
    assert int(metrics["skipped/student"]) == lost
    after = jax.device_get((state.params, state.opt))
    same = jax.tree.map(np.array_equal, before, after)
    assert all(jax.tree.leaves(same)) == lost
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


BOUNDED = {
    "usual": ({}, True),
    "decay": ({"optimizer": "adamw", "weight_decay": 0.1}, True),
    "lion": ({"optimizer": "lion"}, True),
    "eps that is lost": ({"eps": 1e-30}, False),
    "no bias to correct": ({"betas": (0.9, 1.0 - 1e-9)}, False),
    "rate": ({"lr": 1e6}, False),
    "decay that grows": (
        {"optimizer": "adamw", "lr": 10.0, "weight_decay": 1.0},
        False,
    ),
    "decay of large parameters": (
        {"optimizer": "adamw", "lr": 1e-6, "weight_decay": 1e5},
        False,
    ),
    "other": ({"optimizer": "radam"}, False),
}


@pytest.mark.parametrize("case", BOUNDED)
def test_an_optimizer_is_known_to_be_bounded_by_its_settings(case):
    settings, expected = BOUNDED[case]
    made = RoleConfig(**settings).build(10)
    assert isinstance(made, optimizers.Bounded) == expected


def test_a_bounded_optimizer_at_its_bound():
    """The largest gradient, then none: moments shrink while updates stay finite."""
    settings = RoleConfig(optimizer="adamw", lr=10.0, eps=1e-12, weight_decay=0.1)
    made = settings.build(10)
    assert isinstance(made, optimizers.Bounded)
    params = {"w": jnp.full((2,), 1e6)}
    opt = made.init(params)
    for size in (optimizers.BOUND, 0.0, 1e-30, -optimizers.BOUND):
        grads = {"w": jnp.array([size, 0.0], jnp.float32)}
        updates, opt = made.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        for leaf in jax.tree.leaves((params, opt)):
            assert np.isfinite(leaf).all()


def test_seeds_of_one_program_are_guarded_apart():
    setup = built(small.regression(), linear())
    state = create_state(setup)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), (state.params, state.opt))
    x0 = batch_of(setup)["x0"]

    def one(params, opt, x0):
        new, metrics = run_cycle(
            setup,
            setup.method.phases,
            state._replace(params=params, opt=opt),
            {},
            {"x0": x0},
        )
        return new.params, metrics["skipped/student"]

    params, skipped = jax.jit(jax.vmap(one))(*both, np.stack([x0, np.nan * x0]))
    assert skipped.tolist() == [0, 1]
    start = state.params["student"]["w"]
    assert not np.array_equal(params["student"]["w"][0], start)
    np.testing.assert_array_equal(params["student"]["w"][1], start)


@pytest.mark.parametrize("repeat", [1, 2])
def test_parameters_and_moments_are_replaced_where_they_are(repeat):
    width = 256
    setup = built(
        small.regression(repeat=repeat),
        linear(width),
        width=width,
        student={"clip": 1.0},
    )
    state, batch = create_state(setup), batch_of(setup, width, repeat)
    cycle = build_cycle(setup, setup.method.phases)
    compiled = cycle.lower(state, {}, batch).compile()
    size = state.params["student"]["w"].nbytes
    # The gradient; not the new parameters and moments beside the old ones.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * size
