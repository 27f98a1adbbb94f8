"""Trajectory corrections: they vanish at the exact map and point the right way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import losses, paths
from distilljax.core.binding import Bound, Network, flow_output
from distilljax.diffusion.flow_maps import AffineFlowMap
from distilljax.diffusion.oracles import prediction
from distilljax.diffusion.predictions import VELOCITY, F, carry, convert
from distilljax.diffusion.solvers import Euler, Heun, solve
from distilljax.losses import (
    consistency,
    dual_end,
    eulerian,
    finite_difference,
    lagrangian,
    semigroup,
)
from distilljax.losses.corrections import correct, regress
from tests import toy
from tests.exact import PATHS, allclose, gaussian, normal

pytestmark = pytest.mark.usefixtures("x64")
NAMES = ("linear", "trigflow_half", "edm", "vp")
SHARES = (
    (0.3, 0.5, 0.7, 0.9, 0.99),
    (0.2, 0.4, 0.5, 0.5, 0.4),
    (0.1, 0.1, 0.4, 0.2, 0.05),
)


def points(path):
    """States and times ``t > m > s > t_min``, at equal noise angles."""
    top = path.angle(jnp.asarray(path.t_max))
    t, m, s = (path.time_of_angle(jnp.array(u) * top) for u in SHARES)
    return path.scale(t)[:, None] * normal(0, 5, 2), t, m, s


def exact_map(path):
    return gaussian().affine_map(path, flow_output(path))


def shifted(f, change):
    """The map whose network output is off by a constant."""
    return dataclasses.replace(f, output=lambda x, t, s: f.output(x, t, s) + change)


def student(path=None, seed=0, kind=VELOCITY):
    """A smooth map with random parameters, as a function of them."""
    path = paths.linear() if path is None else path
    net = toy.mlp((2,), second_time=True)
    params = toy.cast(net.init(jax.random.key(seed)))
    params["second"] = {"w": 0.3 * normal(5, *params["second"]["w"].shape)}

    def build(params):
        def output(x, t, s):
            t, s = (jnp.broadcast_to(u, x.shape[:1]) for u in (t, s))
            return net.apply(params, x, t, None, s)

        return AffineFlowMap(output, path, kind)

    return build, params


@pytest.mark.parametrize("name", NAMES)
def test_every_identity_holds_at_the_exact_map(name):
    path = PATHS[name]
    x, t, m, s = points(path)

    @jax.jit
    def directions(x, t, m, s):
        f, v = exact_map(path), prediction(gaussian(), path, "velocity")
        v_t = v(x, t)
        return {
            "eulerian to s": eulerian(f, v_t, x, t, s).direction,
            "eulerian to 0": eulerian(f, v_t, x, t, 0.0).direction,
            "eulerian at s = t": eulerian(f, v_t, x, t, t).direction,
            "lagrangian": lagrangian(f, v, x, t, s).direction,
            "semigroup": semigroup(f, f, x, t, m, s).direction,
            "consistency": consistency(f, f, x, t, f(x, t, m), m, s).direction,
            "consistency to 0": consistency(f, f, x, t, f(x, t, m), m).direction,
        }

    for label, direction in directions(x, t, m, s).items():
        # EDM's states reach 80 and its clock as far.
        tol = 1e-8 if name == "edm" else 1e-10
        np.testing.assert_allclose(direction, 0.0, atol=tol, err_msg=label)


@pytest.mark.parametrize("name", NAMES)
def test_directions_lead_back_to_the_exact_map(name):
    path = PATHS[name]
    x, t, m, s = points(path)
    change = jnp.array([0.01, -0.02])

    @jax.jit
    def directions(x, t, m, s):
        f, v = exact_map(path), prediction(gaussian(), path, "velocity")
        off, v_t = shifted(f, change), v(x, t)
        moved = off(x, t, s) - f(x, t, s)
        return {
            "eulerian to s": (eulerian(off, v_t, x, t, s).direction, change),
            "eulerian to 0": (eulerian(off, v_t, x, t, 0.0).direction, change),
            "eulerian at s = t": (eulerian(off, v_t, x, t, t).direction, change),
            "lagrangian": (lagrangian(off, v, x, t, s).direction, change),
            "semigroup": (semigroup(off, f, x, t, m, s).direction, change),
            "consistency": (
                consistency(off, f, x, t, f(x, t, m), m, s).direction,
                moved,
            ),
        }

    for label, (direction, error) in directions(x, t, m, s).items():
        assert np.all(np.sum(direction * error, axis=1) < 0.0), label


@pytest.mark.parametrize("target", ["own", "exact"])
def test_a_semigroup_target_undoes_the_error_of_a_jump(target):
    path, change = paths.linear(), jnp.array([0.01, -0.02])
    x, t, m, s = points(path)
    f = exact_map(path)
    off = shifted(f, change)
    other = f if target == "exact" else off
    c = jax.jit(lambda *a: semigroup(off, other, *a))(x, t, m, s)
    if target == "exact":
        allclose(c.direction, jnp.broadcast_to(-change, (5, 2)), 1e-11)
    else:
        # Two equal errors leave a jump's own error alone, to first order.
        assert np.abs(c.direction).max() < 0.9 * np.abs(change).max()


def test_the_continuous_direction_is_the_negative_error_on_the_linear_path():
    path, change = paths.linear(), jnp.array([0.01, -0.02])
    x, t, _, s = points(path)

    @jax.jit
    def direction(x, t, s):
        v = prediction(gaussian(), path, "velocity")(x, t)
        return eulerian(shifted(exact_map(path), change), v, x, t, s).direction

    allclose(direction(x, t, s), jnp.broadcast_to(-change, (5, 2)), 1e-11)


def test_the_target_of_mean_flow():
    build, params = student()
    f = build(params)
    x, t, _, s = points(paths.linear())
    v = normal(3, 5, 2)

    @jax.jit
    def run(x, t, s):
        u, du = jax.jvp(lambda x, t: f.output(x, t, s), (x, t), (v, jnp.ones_like(t)))
        c = eulerian(f, v, x, t, s)
        return (c.output, u), (c.target, v - (t - s)[:, None] * du)

    for found, wanted in run(x, t, s):
        allclose(found, wanted)


@pytest.mark.parametrize("kappa", [0.0, 0.4, 1.0])
def test_the_published_direction_of_scm(kappa):
    sd, path = 0.5, paths.trigflow(0.5)
    net = toy.mlp((2,))
    params = toy.cast(net.init(jax.random.key(0)))
    x, t, _, _ = points(path)
    v, te = normal(3, 5, 2), t[:, None]
    cos, sin = jnp.cos(te), jnp.sin(te)
    raw, slope = jax.jvp(
        lambda x, t: net.apply(params, x, t),
        (x / sd, t),
        (cos * sin * v / sd, (cos * sin)[:, 0]),
    )
    wanted = -(cos**2) * (sd * raw - v) - kappa * (cos * sin * x + sd * slope)
    f = AffineFlowMap(lambda x, t, s: sd * net.apply(params, x / sd, t), path)
    c = eulerian(f, v, x, t, 0.0, warmup=kappa)
    allclose(c.output, sd * raw)
    allclose(c.direction, wanted, 1e-14)


@pytest.mark.parametrize("ratio", [0.4, 1.0])
def test_the_direction_of_rcm_through_its_wrapper(ratio):
    net = toy.mlp((2,), path=paths.linear())
    params = toy.cast(net.init(jax.random.key(0)))
    path = paths.trigflow()
    x, t, _, _ = points(path)
    v, te = normal(3, 5, 2), t[:, None]

    def wrapped(x, t):
        cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
        inner = x / (cos + sin)
        velocity = net.apply(params, inner, (sin / (cos + sin))[:, 0])
        denoised = inner - sin / (cos + sin) * velocity
        return (cos * x - denoised) / sin

    cos, sin = jnp.cos(te), jnp.sin(te)
    raw, slope = jax.jvp(wrapped, (x, t), (cos * sin * v, (cos * sin)[:, 0]))
    root = jnp.sqrt(1 - ratio**2 * sin**2)
    wanted = -cos * root * (raw - v) - (ratio * cos * sin * x + slope)
    f = Bound("student", net, params).flow_map(path=path, two_time=False)
    c = eulerian(f, v, x, t, warmup=ratio, state_only=True)
    allclose(c.output, raw, 1e-11)
    allclose(c.direction, wanted, 1e-11)


@pytest.mark.parametrize("name", ["edm", "vp"])
def test_an_f_output_has_the_direction_of_trigflow_on_every_path(name):
    path = PATHS[name]
    trig = paths.trigflow(path.sigma_d)
    net = toy.mlp((2,), path=trig, prediction="F", second_time=True)
    params = toy.cast(net.init(jax.random.key(0)))
    params["second"] = {"w": 0.3 * normal(5, *params["second"]["w"].shape)}

    def on_trig(x, t, s):
        return net.apply(params, x / path.sigma_d, t, None, s)

    def on_path(x, t, s):
        x, t = carry(path, trig, x, t)
        return on_trig(x, t, carry(path, trig, x, s)[1])

    @jax.jit
    def both(x, t, s, v):
        # The same point, and the same velocity after the change of clock and scale.
        (x_own, t_own), (dx, dt) = jax.jvp(
            lambda x, t: carry(trig, path, x, t), (x, t), (v, jnp.ones_like(t))
        )
        s_own = carry(trig, path, x, s)[1]
        f_trig, f_own = AffineFlowMap(on_trig, trig, F), AffineFlowMap(on_path, path, F)
        return (
            eulerian(f_trig, v, x, t, s, warmup=0.7),
            eulerian(f_own, dx / dt[:, None], x_own, t_own, s_own, warmup=0.7),
        )

    t, s = jnp.array([0.3, 0.8, 1.2]), jnp.array([0.1, 0.2, 0.9])
    wanted, found = both(normal(0, 3, 2), t, s, normal(3, 3, 2))
    allclose(found.output, wanted.output, 1e-9)
    allclose(found.direction, wanted.direction, 1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_without_the_warmed_part_it_is_flow_matching(name):
    path = PATHS[name]
    x, t, _, s = points(path)
    v = normal(3, 5, 2)
    build, params = student(path, kind=flow_output(path))
    f = build(params)
    c = eulerian(f, v, x, t, s, warmup=0.0)
    # A factor per sample times the output of that velocity minus the output.
    error = convert(path, v, x, t, "velocity", f.kind) - f.output(x, t, s)
    angle, end = (
        jnp.arctan(path.sigma(u) / (path.sigma_d * path.alpha(u))) for u in (t, s)
    )
    factor = jnp.cos(angle) * jnp.cos(angle - end)
    factor = jnp.ones_like(t) if name == "linear" else factor
    allclose(c.direction, factor[:, None] * error, 1e-9)


@pytest.mark.parametrize("name", ["linear", "trigflow_half"])
def test_the_jvp_matches_finite_differences(name):
    path = PATHS[name]
    x, t, _, s = points(path)
    build, params = student(path)
    v = normal(3, 5, 2)

    @jax.jit
    def both(x, t, s):
        f = build(params)
        return (
            eulerian(f, v, x, t, s),
            eulerian(f, v, x, t, s, derivative=finite_difference(1e-4)),
        )

    exact, approximate = both(x, t, s)
    allclose(approximate.output, exact.output)
    allclose(approximate.direction, exact.direction, 1e-7)


def test_gradients_reach_the_primal_only():
    path = paths.linear()
    x, t, m, s = points(path)
    build, params = student(path)
    v = prediction(gaussian(), path, "velocity")

    def correction(name, params):
        f = build(params)
        return {
            "eulerian": lambda: eulerian(f, v(x, t), x, t, s),
            "finite": lambda: eulerian(
                f, v(x, t), x, t, s, derivative=finite_difference()
            ),
            "lagrangian": lambda: lagrangian(f, v, x, t, s),
            "semigroup": lambda: semigroup(f, f, x, t, m, s),
        }[name]()

    @jax.jit
    def slopes(params):
        out = {}
        for name in ("eulerian", "finite", "lagrangian", "semigroup"):
            fixed = correction(name, params).direction

            def plain(p, fixed=fixed):
                return regress(correct(build(p).output(x, t, s), fixed)).sum()

            def ours(p, name=name):
                return regress(correction(name, p)).sum()

            out[name] = jax.grad(ours)(params), jax.grad(plain)(params)
        return out

    for found, wanted in slopes(params).values():
        jax.tree.map(lambda a, b: allclose(a, b, 1e-11), found, wanted)


def test_velocity_and_state_get_no_gradient():
    build, params = student()
    x, t, _, s = points(paths.linear())

    def loss(x, v):
        return regress(eulerian(build(params), v, x, t, s)).sum()

    for slope in jax.grad(loss, argnums=(0, 1))(x, normal(3, 5, 2)):
        np.testing.assert_array_equal(slope, 0.0)


def test_the_continuous_gradient_is_the_limit_of_the_discrete_one():
    path, dt = paths.linear(), 1e-5
    x, t, _, s = points(path)
    build, params = student(path)
    v = normal(3, 5, 2)

    def continuous(params):
        return regress(eulerian(build(params), v, x, t, s)).sum()

    def discrete(params):
        f = build(params)
        c = consistency(f, f, x, t, x - dt * v, t - dt, s)
        return regress(c._replace(weight=1.0 / ((t - s) * dt))).sum()

    wanted, found = jax.jit(lambda p: (jax.grad(continuous)(p), jax.grad(discrete)(p)))(
        params
    )
    jax.tree.map(lambda a, b: allclose(a, b, 2e-4), found, wanted)


def test_discrete_consistency_sees_the_error_of_the_solver():
    """At the exact map the direction is the local error of the teacher's step."""
    path = paths.edm()
    x, t = path.scale(jnp.asarray(3.0)) * normal(0, 4, 2), 3.0
    steps = np.array([0.2, 0.1, 0.05])

    def sizes(solver):
        f, v = exact_map(path), prediction(gaussian(), path, "velocity")

        @jax.jit
        def run(h):
            x_tau = solve(v, x, [jnp.full(4, t), t - h], path=path, solver=solver)
            c = consistency(f, f, x, t, x_tau, t - h)
            return jnp.abs(c.direction).max()

        return [float(run(jnp.full(4, h))) for h in steps]

    for solver in (Euler(), Heun()):
        slope = np.polyfit(np.log(steps), np.log(sizes(solver)), 1)[0]
        assert slope == pytest.approx(solver.order + 1, abs=0.2)


def test_a_pair_that_has_arrived_is_its_own_target():
    path = paths.linear()
    f = exact_map(path)
    x, x_tau = normal(0, 3, 2), normal(1, 3, 2)
    tau, s = jnp.array([0.3, 0.2, 0.0]), jnp.array([0.3, 0.1, 0.0])
    c = jax.jit(lambda *a: consistency(f, f, x, 0.8, *a))(x_tau, tau, s)
    wanted = jax.jit(f.__call__)(x_tau, tau, s)
    allclose(c.target, wanted.at[jnp.array([0, 2])].set(x_tau[jnp.array([0, 2])]))


def test_times_may_be_scalars_or_differ_by_sample():
    path = paths.trigflow(0.5)
    build, params = student(path)
    f, v = build(params), prediction(gaussian(), path, "velocity")
    x = normal(0, 4, 2)

    def all_of(t, m, s):
        return (
            eulerian(f, v(x, t), x, t, s),
            lagrangian(f, v, x, t, s),
            semigroup(f, f, x, t, m, s),
            consistency(f, f, x, t, 0.9 * x, m, s),
        )

    one = jnp.ones(4)
    single = jax.jit(lambda: all_of(1.1, 0.7, 0.2))()
    filled = jax.jit(lambda: all_of(1.1 * one, 0.7 * one, 0.2 * one))()
    mixed = jax.jit(lambda: all_of(1.1 * one, 0.7, 0.2))()
    for a, b, c in zip(single, filled, mixed, strict=True):
        assert a.weight.shape == (4,)
        for x_a, x_b, x_c in zip(a, b, c, strict=True):
            allclose(x_a, x_b)
            allclose(x_c, x_b)


def test_times_may_differ_by_frame():
    path, frames = paths.linear(), 3
    x, v = normal(0, 4, frames, 2), normal(1, 4, frames, 2)
    t = 0.5 + 0.4 * jax.random.uniform(jax.random.key(2), (4, frames))
    m, s = 0.6 * t, 0.3 * t

    def output(x, t, s):
        grown = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
        less = s.reshape(s.shape + (1,) * (x.ndim - s.ndim))
        return jnp.sin(x) * grown + jnp.cos(x * less)

    def field(x, t):
        return jnp.tanh(x) * t.reshape(t.shape + (1,) * (x.ndim - t.ndim))

    f = AffineFlowMap(output, path)

    def all_of(x, v, t, m, s):
        return (
            eulerian(f, v, x, t, s),
            lagrangian(f, field, x, t, s),
            semigroup(f, f, x, t, m, s),
            consistency(f, f, x, t, 0.9 * x, m, s),
        )

    whole = jax.jit(all_of)(x, v, t, m, s)
    for i in range(frames):
        part = jax.jit(all_of)(x[:, i], v[:, i], t[:, i], m[:, i], s[:, i])
        for a, b in zip(whole, part, strict=True):
            assert a.weight.shape == (4, frames)
            assert regress(a).shape == (4, frames)
            allclose(a.direction[:, i], b.direction, 1e-11)


def test_one_evaluation_gives_output_and_tangent():
    build, params = student()
    x, t, _, s = points(paths.linear())
    v = normal(3, 5, 2)
    calls = []

    def counted(x, t, s):
        calls.append(1)
        return build(params).output(x, t, s)

    f = AffineFlowMap(counted, paths.linear())
    jax.make_jaxpr(lambda: eulerian(f, v, x, t, s))()
    assert len(calls) == 1
    calls.clear()
    jax.make_jaxpr(lambda: eulerian(f, v, x, t, s, derivative=finite_difference()))()
    assert len(calls) == 3


def test_tangents_stay_bounded_at_the_noise_end():
    """In float32, with EDM teachers seen on TrigFlow up to the last time."""
    path, own = paths.trigflow(0.5), paths.edm()

    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        return jnp.sin(x) * jnp.cos(0.1 * jnp.log(t + 1e-3))[:, None]

    net = Network("net", apply, lambda key: {}, own, "F")
    f = Bound("student", net, {}).flow_map(path=path)
    t = jnp.array([0.0, 1e-3, 1.0, 1.57, np.pi / 2], jnp.float32)
    x = 0.5 * normal(0, 5, 2).astype(jnp.float32)
    c = jax.jit(lambda x, t: losses.eulerian(f, 0.3 * x, x, t))(x, t)
    assert c.direction.dtype == jnp.float32
    assert np.all(np.isfinite(c.direction))
    assert np.abs(c.direction).max() < 10.0


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.0, 2.0), (0.7, 0.0)])
@pytest.mark.parametrize("name", NAMES)
def test_dual_end_is_the_weighted_sum_of_both_derivatives(name, weights):
    path = PATHS[name]
    x, t, _, s = points(path)
    build, params = student(path, kind=flow_output(path))
    f, field = build(params), prediction(gaussian(), path, "velocity")
    v = field(x, t)
    found = dual_end(
        f, field, v, x, t, s, start_weight=weights[0], end_weight=weights[1]
    )
    start, end = eulerian(f, v, x, t, s), lagrangian(f, field, x, t, s)
    wanted = weights[0] * start.direction + weights[1] * end.direction
    assert float(jnp.abs(wanted).max()) > 0.01
    allclose(found.direction, wanted, 1e-9)
    allclose(found.output, start.output)


@pytest.mark.parametrize("name", NAMES)
def test_dual_end_vanishes_at_the_exact_map(name):
    path = PATHS[name]
    x, t, _, s = points(path)
    field = prediction(gaussian(), path, "velocity")
    f = exact_map(path)
    assert float(jnp.abs(dual_end(f, field, field(x, t), x, t, s).direction).max()) < (
        1e-9
    )
    off = dual_end(shifted(f, 0.1), field, field(x, t), x, t, s)
    assert float(jnp.abs(off.direction).max()) > 0.01
