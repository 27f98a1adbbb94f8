"""Shortcut models: formulas, points of rest, reductions, and who jumps how far."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import generation, oracles, paths
from distilljax.methods import shortcut
from distilljax.methods.flow_map.shortcut import jump_levels
from distilljax.training.cost import matmul_flops
from tests import exact
from tests.methods import cases
from tests.methods.played import play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()


def bound(found, role):
    return found.context().nets[role]


def tree(found, levels, share):
    """What `shortcut` draws: ``(level, t, length, x_t, noise - x0)``."""
    ctx = found.context().of("halve")
    level = jnp.asarray(jump_levels(ctx.batch_size, levels, share), jnp.int32)
    h = 2.0**-level
    t = 1.0 - h * jnp.floor(ctx.uniform("place") / h)
    x0, eps = found.data["x0"], ctx.normal("eps")
    return level, t, h, LINEAR.noise(x0, eps, t), eps - x0


def half_mean_square(x):
    return 0.5 * jnp.mean(x**2, -1)


def test_shortcut_without_jumps_is_flow_matching():
    found = play(shortcut(share=0.0, teacher=False))
    _, t, _, x_t, v = tree(found, 7, 0.0)
    u = bound(found, "student").apply(x_t, t, found.data["cond"], t)
    exact.allclose(found.values()["halve"], half_mean_square(u - v))


@pytest.mark.parametrize("teacher", [True, False])
def test_a_shortcut_is_the_mean_of_its_halves(teacher):
    levels, share = 3, 0.7
    found = play(shortcut(levels=levels, share=share, teacher=teacher), batch_size=64)
    level, t, h, x_t, v = tree(found, levels, share)
    cond = found.data["cond"]
    if teacher:
        v = bound(found, "teacher").apply(x_t, t, cond)
    net = bound(found, "target")
    half, wide = 0.5 * h, 0.5 * h[:, None]
    # The smallest halves are velocities.
    told = jnp.where(level == levels - 1, 0.0, half)
    first = net.apply(x_t, t, cond, t - told)
    middle = t - half
    second = net.apply(x_t - wide * first, middle, cond, middle - told)
    still = level == levels
    u = bound(found, "student").apply(x_t, t, cond, jnp.where(still, t, t - h))
    target = jnp.where(still[:, None], v, 0.5 * (first + second))
    exact.allclose(found.values()["halve"], half_mean_square(u - target), 1e-10)
    assert {int(n) for n in level} == {0, 1, 2, 3}


def test_shortcut_rests_on_the_exact_map_but_for_the_smallest_halves():
    oracle, levels = exact.gaussian(), 4
    jumper = oracles.network(oracle, LINEAR, two_time=True)
    nets = {
        "student": jumper,
        "target": jumper,
        "teacher": oracles.network(oracle, LINEAR),
    }
    found = play(shortcut(levels=levels, share=0.7), batch_size=64, **nets)
    level = tree(found, levels, 0.7)[0]
    values = found.values()["halve"]
    assert float(values[level != levels - 1].max()) < 1e-20
    assert float(values[level == levels - 1].min()) > 1e-10
    wrong = oracles.network(oracles.Gaussian(0.0, 1.0), LINEAR, two_time=True)
    off = play(
        shortcut(levels=levels, share=0.7), batch_size=64, **{**nets, "student": wrong}
    )
    assert float(off.values()["halve"][level != levels - 1].min()) > 1e-6


def test_shortcut_without_a_teacher_guides_the_smallest_halves_alone():
    def run(levels, guidance):
        return play(
            shortcut(levels=levels, share=1.0, teacher=False, guidance=guidance),
            batch_size=64,
        )

    found = run(1, 3.0)
    _, t, _, x_t, _ = tree(found, 1, 1.0)
    cond, net = found.data["cond"], bound(found, "target")
    null = jnp.full_like(cond, cases.CLASSES)

    def guided(x, t):
        without = net.apply(x, t, null, t)
        return without + 3.0 * (net.apply(x, t, cond, t) - without)

    first = guided(x_t, t)
    second = guided(x_t - 0.5 * first, t - 0.5)
    u = bound(found, "student").apply(x_t, t, cond, t - 1.0)
    wanted = half_mean_square(u - 0.5 * (first + second))
    exact.allclose(found.values()["halve"], wanted, 1e-10)
    plain, strong = (run(3, w).values()["halve"] for w in (1.0, 3.0))
    longer = tree(run(3, 3.0), 3, 1.0)[0] < 2
    exact.allclose(strong[longer], plain[longer])
    assert not np.any(np.isclose(strong[~longer], plain[~longer], rtol=1e-6))


@pytest.mark.parametrize(
    ("batch", "biased", "wanted"),
    [
        # The numbers of the release: 25 % of what jumps goes the whole range.
        (256, False, {0: 8, 1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 4, 7: 224}),
        (256, True, {0: 14, 1: 8, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 7: 224}),
        (64, False, {0: 2, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 56}),
        (32, False, {0: 4, 7: 28}),
    ],
)
def test_the_remainder_of_a_batch_jumps_the_whole_range(batch, biased, wanted):
    found = jump_levels(batch, biased=biased)
    assert collections.Counter(found.tolist()) == wanted
    # Every eighth row jumps, so that each of several devices holds its share.
    np.testing.assert_array_equal(np.flatnonzero(found < 7), np.arange(0, batch, 8))


def test_rows_that_jump_keep_their_labels():
    found = play(
        shortcut(levels=2, share=0.5, teacher=False, label_dropout=1.0), batch_size=16
    )
    level, t, h, x_t, v = tree(found, 2, 0.5)
    cond, net = found.data["cond"], bound(found, "student")
    null = jnp.full_like(cond, cases.CLASSES)
    still = level == 2
    u = net.apply(x_t, t, jnp.where(still, null, cond), jnp.where(still, t, t - h))
    values = found.values()["halve"]
    exact.allclose(values[still], half_mean_square(u - v)[still], 1e-10)
    kept = play(shortcut(levels=2, share=0.5, teacher=False), batch_size=16)
    exact.allclose(values[~still], kept.values()["halve"][~still], 1e-10)


def test_the_middle_and_the_target_are_clipped():
    limit = 0.3
    found = play(shortcut(levels=1, share=1.0, teacher=False, clip=limit))
    _, t, h, x_t, _ = tree(found, 1, 1.0)
    cond, net = found.data["cond"], bound(found, "target")
    first = net.apply(x_t, t, cond, t)
    x_m = jnp.clip(x_t - 0.5 * first, -limit, limit)
    second = net.apply(x_m, t - 0.5, cond, t - 0.5)
    # The second half starts where it was clipped to.
    target = jnp.clip(x_t - (x_m - 0.5 * second), -limit, limit)
    u = bound(found, "student").apply(x_t, t, cond, t - 1.0)
    exact.allclose(found.values()["halve"], half_mean_square(u - target), 1e-10)


def test_smallest_steps_are_sampled_as_they_were_trained():
    method = shortcut(levels=2)
    net = bound(play(method), "student")
    f = generation.student_map(method, net.network, net.params, jnp.zeros(3, int))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, *cases.SHAPE)))
    t = jnp.asarray([0.25, 1.0, 1.0])
    s = jnp.asarray([0.0, 0.75, 0.5])
    told = jnp.asarray([0.25, 1.0, 0.5])
    wanted = net.apply(x, t, jnp.zeros(3, int), told)
    exact.allclose(f.output(x, t, s), wanted, 1e-10)
    exact.allclose(f.output(x, 1.0, 0.75), net.apply(x, 1.0, jnp.zeros(3, int), 1.0))


def test_only_rows_that_jump_are_rolled_out():
    def products(share):
        found = play(shortcut(share=share, teacher=False), batch_size=64)
        ctx = found.context().of("halve")
        (term,) = found.update.phase.terms
        return matmul_flops(lambda: term.loss(ctx.of("halve")))

    plain = products(0.0)
    assert products(0.125) == pytest.approx(1.25 * plain)
