"""Anchored consistency: where its targets rest, its weights and reductions."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import losses, oracles, paths
from distilljax.core.binding import Network
from distilljax.diffusion.times import ArctanNormal, LogitNormal, Uniform
from distilljax.losses.metrics import mse_cosine
from distilljax.methods import de_cm, facm
from distilljax.sampling.generation import student_sampler
from tests import exact
from tests.methods import cases
from tests.methods.played import play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR, TRIG = paths.linear(), paths.trigflow()
LAW = LogitNormal(0.0, 1.0)


def oracle_networks(path=LINEAR):
    oracle = exact.gaussian()
    return {
        "student": oracles.network(oracle, path, two_time=True),
        "teacher": oracles.network(oracle, path),
    }


def largest(values):
    return {name: float(jnp.abs(value).max()) for name, value in values.items()}


def point(found):
    p = found.context().data["point"]
    return p["x_t"], p["t"], p["v"]


@pytest.mark.parametrize("step", [0, 30_000])
@pytest.mark.parametrize("path", [LINEAR, TRIG])
@pytest.mark.parametrize("relaxation", [0.5, 3.0, None])
def test_the_relaxed_target_rests_at_the_exact_map(path, step, relaxation):
    for build in (de_cm, facm):
        method = build(path=path, law=LAW, relaxation=relaxation)
        nets = oracle_networks(path)
        assert max(largest(play(method, step=step, **nets).values()).values()) < 1e-12
        other = oracles.network(oracles.Gaussian(0.0, 1.0), path, two_time=True)
        wrong = play(method, step=step, **{**nets, "student": other}).values()
        assert min(largest(wrong).values()) > 1e-3


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_shares_of_both_squares_rest_at_the_exact_map_if_equal(share):
    """Equation 8 under shares ``a`` is a tangent warm-up at ``(1 - a)/a``."""
    kappa = (1.0 - share) / share
    method = de_cm(law=LAW, warmup=kappa, limit=100.0, p=0.0, relaxation=None)
    value = largest(play(method, **oracle_networks()).values())["shortcut"]
    assert (value < 1e-12) == (share == 0.5)
    assert share == 0.5 or value > 1e-3
    # The same with any student: gradient of a |u - v|^2 + (1 - a)|u - (u - t u')|^2.
    found = play(method)
    x_t, t, v = point(found)
    f = found.context().nets.student.flow_map(found.data["cond"])

    def moved(c):
        return dataclasses.replace(f, output=lambda x, t, s: f.output(x, t, s) + c)

    def both(c):
        u, rate = losses.exact(
            lambda x, t: moved(c).output(x, t, jnp.zeros_like(t)),
            (x_t, t),
            (v, jnp.ones_like(t)),
        )
        own = jax.lax.stop_gradient(u - t[:, None] * rate)
        return 0.5 * jnp.mean(share * (u - v) ** 2 + (1 - share) * (u - own) ** 2)

    def warmed(c):
        found = losses.eulerian(moved(c), v, x_t, t, warmup=kappa)
        return share * jnp.mean(losses.regress(found))

    zero = jnp.zeros(2)
    # The schedule's value is float32.
    exact.allclose(jax.grad(both)(zero), jax.grad(warmed)(zero), 1e-6)


@pytest.mark.parametrize(("share", "miss"), [(0.7, 0.53), (0.3, 0.62)])
def test_unequal_shares_rest_at_an_average_velocity_under_other_weights(share, miss):
    """``u = int_0^1 v(x_{z^k t}, z^k t) dz`` solves ``u = v - k t du/dt``."""
    kappa, oracle = (1.0 - share) / share, exact.gaussian()
    flow, v = oracle.flow_map(LINEAR), oracle.velocity(LINEAR)
    nodes, weights = np.polynomial.legendre.leggauss(48)

    def apply(params, x, t, cond=None, s=None, **options):
        at = (0.5 * (nodes + 1.0)) ** kappa * t[:, None]
        velocities = jax.vmap(lambda at: v(flow(x, t, at), at), 1)(at)
        return jnp.tensordot(0.5 * weights, velocities, 1)

    capabilities = frozenset({"jvp", "second_time"})
    rest = Network(
        "rest", apply, lambda key: {}, LINEAR, "velocity", capabilities=capabilities
    )
    method = de_cm(law=LAW, warmup=kappa, limit=100.0, p=0.0, relaxation=None)
    nets = {**oracle_networks(), "student": rest}
    assert largest(play(method, **nets).values())["shortcut"] < 1e-8
    eps, one = exact.normal(0, 4096, 2), jnp.ones(4096)
    error = eps - apply({}, eps, one) - flow(eps, one, jnp.zeros(4096))
    found = float(jnp.sqrt(jnp.mean(error**2) / jnp.mean(oracle.std**2)))
    assert found == pytest.approx(miss, abs=2e-2)


def test_a_share_of_velocity_and_output_rests_at_the_velocity():
    """``a v + (1 - a) u`` is flow matching, wrong for a map to the data."""
    method = de_cm(law=LAW, warmup=0.0, relaxation=None)
    values = largest(play(method, **oracle_networks()).values())
    assert values["shortcut"] > 1e-3
    velocity = oracles.network(exact.gaussian(), LINEAR)
    stuck = Network(
        "velocity",
        lambda params, x, t, cond=None, s=None, **o: velocity.apply({}, x, t),
        lambda key: {},
        LINEAR,
        "velocity",
        frozenset({"jvp", "second_time"}),
    )
    nets = {**oracle_networks(), "student": stuck}
    assert largest(play(method, **nets).values())["shortcut"] < 1e-12


def test_the_printed_tangent_of_the_hop_does_not_vanish_on_the_exact_map():
    oracle, gamma, lam = exact.gaussian(), 1.0, 0.5
    f, v = oracle.affine_map(LINEAR), oracle.velocity(LINEAR)
    x, t = exact.normal(0, 6, 2), jnp.full(6, 0.95)
    s = jnp.linspace(0.1, 0.8, 6)
    y = f(x, t, s)

    def residual(forward, backward):
        tangents = (forward * v(x, t), jnp.full(6, forward), jnp.full(6, -backward))
        u, rate = jax.jvp(f.output, (x, t, s), tangents)
        ends = gamma * v(x, t) + lam * v(y, s)
        return float(jnp.abs((lam + gamma) * u - ends - (s - t)[:, None] * rate).max())

    assert residual(gamma, lam) < 1e-12
    assert residual(lam, gamma) > 1e-3


def test_de_cm_without_hops_is_facm():
    law = ArctanNormal(-0.8, 1.6)
    ours = play(de_cm(law=law, hop_weight=0, guidance=1.0)).values()
    theirs = play(facm(law=law)).values()
    assert set(ours) == set(theirs) == {"shortcut", "anchor"}
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_hops_are_taken_every_third_cycle():
    for step, on in ((0, True), (1, False), (2, False), (3, True)):
        values = play(de_cm(), step=step).values()
        assert bool(jnp.all(values["hop"] > 0)) == on
        assert on or not np.any(values["hop"])
        assert bool(jnp.all(values["anchor"] > 0))
    assert bool(jnp.all(play(de_cm(every=1), step=1).values()["hop"] > 0))


@pytest.mark.parametrize("normalized", [True, False])
def test_a_hop_is_the_dual_end_correction_from_the_start(normalized):
    changed = {} if normalized else {"tangent": None}
    found = play(de_cm(law=Uniform(), every=1, **changed), step=10_000)
    ctx = found.context().of("hop")
    r = jnp.full(16, 0.95)
    end = 0.95 * ctx.times("end", Uniform(), LINEAR)
    x_r = LINEAR.noise(found.data["x0"], ctx.normal("eps"), r)
    field = ctx.nets.teacher.velocity(found.data["cond"])
    f = ctx.nets.student.flow_map(found.data["cond"])
    v = field(x_r, r)
    start, stop = (
        losses.eulerian(f, v, x_r, r, end),
        losses.lagrangian(f, field, x_r, r, end),
    )
    direction = start.direction + 0.5 * stop.direction
    if normalized:
        size = jnp.linalg.norm(direction, axis=-1, keepdims=True)
        direction = direction / (size + 0.1)
    wanted = jnp.mean(direction**2, -1)
    exact.allclose(found.values()["hop"], wanted, 1e-6)


def test_the_shortcut_is_clipped_relaxed_and_weighed_by_its_error():
    found = play(facm(law=LAW, limit=0.2))
    x_t, t, v = point(found)
    f = found.context().nets.student.flow_map(found.data["cond"])
    gap = losses.eulerian(f, v, x_t, t).direction
    assert float(jnp.abs(gap).max()) > 0.2 > float(jnp.abs(gap).min())
    relaxed = (1.0 - jnp.sqrt(1.0 - t))[:, None] * jnp.clip(gap, -0.2, 0.2)
    error = jnp.mean(relaxed**2, -1)
    wanted = jnp.sin(0.5 * math.pi * t) * error / jnp.sqrt(error + 1e-3)
    exact.allclose(found.values()["shortcut"], wanted, 1e-9)


def test_the_anchor_is_flow_matching_with_a_cosine():
    found = play(facm(law=LAW))
    x_t, t, v = point(found)
    u = found.context().nets.student.apply(x_t, t, found.data["cond"], t)
    exact.allclose(found.values()["anchor"], mse_cosine(u, v - u, 1), 1e-9)


def test_the_target_of_the_shortcut_is_the_velocity_at_the_data():
    found = play(facm(law=LAW))
    x_t, _, v = point(found)
    t = jnp.full(16, 1e-7)
    f = found.context().nets.student.flow_map(found.data["cond"])
    gap = losses.eulerian(f, v, x_t, t)
    exact.allclose(gap.target, v, 1e-5)


def test_a_mirrored_network_holds_both_tasks_at_one_time_input():
    oracle = exact.gaussian()
    f, v = oracle.affine_map(LINEAR), oracle.velocity(LINEAR)

    def apply(params, x, t, cond=None, s=None, **options):
        at = jnp.abs(t)
        jump = f.output(x, at, jnp.zeros_like(at))
        return jnp.where((t < 0)[:, None], v(x, at), jump)

    both = Network("both", apply, lambda key: {}, LINEAR, "velocity")
    teacher = oracles.network(oracle, LINEAR)
    values = play(facm(mirrored=True, law=LAW), student=both, teacher=teacher).values()
    assert max(largest(values).values()) < 1e-12
    plain = oracles.network(oracle, LINEAR)
    wrong = play(facm(mirrored=True, law=LAW), student=plain, teacher=teacher).values()
    assert largest(wrong)["anchor"] > 1e-3
    with pytest.raises(ValueError, match="mirrored times need a network on"):
        play(facm(mirrored=True, path=TRIG)).values()


def test_without_a_teacher_the_data_is_guided_by_the_network_itself():
    plain = play(facm(teacher=False, law=LAW))
    x_t, t, v = point(plain)
    inside = {"guidance": 3.0, "guidance_interval": (0.0, 0.5)}
    found = play(facm(teacher=False, law=LAW, outside=False, **inside))
    net, cond = found.context().nets.student, found.data["cond"]
    labels = jnp.full_like(cond, cases.CLASSES), cond
    null, own = (net.apply(x_t, t, label, t) for label in labels)
    on = (t <= 0.5)[:, None]
    assert bool(on.any())
    assert not bool(on.all())
    guided = null + 3.0 * (v - null)
    exact.allclose(point(found)[2], jnp.where(on, guided, v), 1e-9)
    # The release swaps the labels outside, and moves away from its own velocity.
    swapped = point(play(facm(teacher=False, law=LAW, **inside)))[2]
    exact.allclose(swapped, jnp.where(on, guided, own + 3.0 * (v - own)), 1e-9)


def test_a_mirrored_network_says_its_null_velocity_at_either_time():
    options = {"mirrored": True, "guidance": 3.0, "guidance_interval": None}
    for mirrored_null, sign in ((False, 1.0), (True, -1.0)):
        method = facm(teacher=False, law=LAW, mirrored_null=mirrored_null, **options)
        found = play(method)
        x_t, t, v = point(found)
        label = jnp.full_like(found.data["cond"], cases.CLASSES)
        null = found.context().nets.student.apply(x_t, sign * t, label)
        plain = found.context().data["x0"]
        assert plain.shape == v.shape
        eps = (x_t - (1.0 - t)[:, None] * plain) / t[:, None]
        exact.allclose(v, null + 3.0 * (eps - plain - null), 1e-6)


def test_the_norm_of_what_guidance_adds_is_limited():
    free, limited, plain = (
        point(play(de_cm(guidance=w, max_norm=size, law=LAW)))[2]
        for w, size in ((3.0, None), (3.0, 0.05), (1.0, None))
    )
    added = jnp.linalg.norm(free - plain, axis=-1)
    assert float(added.max()) > 0.1
    exact.allclose(
        jnp.linalg.norm(limited - plain, axis=-1), jnp.minimum(added, 0.1), 1e-6
    )


def test_de_cm_samples_with_a_hop_first():
    oracle = exact.gaussian()
    network = oracles.network(oracle, LINEAR, two_time=True)
    eps = exact.normal(3, 8, 2)
    run = student_sampler(de_cm(), network, 2)
    found = run({}, eps, None, jax.random.key(0))
    exact.allclose(found, oracle.flow_map(LINEAR)(eps, 1.0, 0.0), 1e-9)
