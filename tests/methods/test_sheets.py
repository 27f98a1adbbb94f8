"""Checks and reductions that the papers of trajectory methods imply, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import oracles, paths
from distilljax.diffusion.solvers import Euler, Heun
from distilljax.diffusion.times import LogNormal, Pair
from distilljax.methods import (
    CATALOGUE,
    build,
    cm_cd,
    mean_flow,
    scm,
)
from tests import exact, toy
from tests.methods import cases
from tests.methods.played import exact_jumper, play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR, TRIG = paths.linear(), paths.trigflow()
PLAIN = {"learned_weight": False}
GUIDED = sorted(
    n for n in CATALOGUE if "guidance" in CATALOGUE[n].factory.__kwdefaults__
)


def own_draws(found, term, law, path=LINEAR):
    """What a term draws on its own: ``(x_t, t, s, noise - x0)``."""
    ctx = found.context().of(term)
    t, s = ctx.pair("times", law, path)
    eps, x0 = ctx.normal("eps"), found.data["x0"]
    return path.noise(x0, eps, t), t, s, eps - x0


def bound(found, role):
    return found.context().nets[role]


def test_mean_flow_on_the_diagonal_is_flow_matching():
    law = Pair(diagonal=1.0)
    found = play(mean_flow(law=law, teacher=False, p=0.0, path=LINEAR))
    x_t, t, s, v = own_draws(found, "average", law)
    np.testing.assert_array_equal(t, s)
    u = bound(found, "student").apply(x_t, t, found.data["cond"], t)
    exact.allclose(found.values()["average"], jnp.sum((u - v) ** 2, -1))


def test_mean_flow_to_the_data_has_the_tangent_of_consistency():
    law = Pair(diagonal=0.0, to_data=1.0)
    found = play(mean_flow(law=law, p=0.0, path=LINEAR))
    x_t, t, _, _ = own_draws(found, "average", law)
    cond = found.data["cond"]
    v = bound(found, "teacher").velocity(cond)(x_t, t)
    f = bound(found, "student").flow_map(cond)

    def rate(h):
        return f(x_t + h * v, t + h, 0.0)

    h = 1e-5
    tangent = (rate(h) - rate(-h)) / (2 * h)
    exact.allclose(found.values()["average"], jnp.sum(tangent**2, -1), 1e-7)


def test_mean_flow_weighs_by_its_own_error():
    law = Pair(diagonal=0.0)
    squared = play(mean_flow(law=law, p=0.0)).values()["average"]
    weighed = play(mean_flow(law=law, p=0.7, eps=0.1)).values()["average"]
    exact.allclose(weighed, squared / (squared + 0.1) ** 0.7, 1e-6)


def test_mean_flow_guides_itself_without_a_teacher():
    """Equation 19; an effective scale of ``omega / (1 - kappa)``."""
    law = Pair(diagonal=1.0)
    method = mean_flow(law=law, teacher=False, p=0.0, omega=0.6, kappa=0.3)
    found = play(method)
    x_t, t, _, v = own_draws(found, "average", law)
    net, cond = bound(found, "student"), found.data["cond"]
    null = net.apply(x_t, t, jnp.full_like(cond, cases.CLASSES), t)
    kept = net.apply(x_t, t, cond, t)
    target = 0.6 * v + 0.1 * null + 0.3 * kept
    exact.allclose(found.values()["average"], jnp.sum((kept - target) ** 2, -1))


def noised(found, term, law, path):
    """What `scm` draws: ``(x_t, t, noise velocity of the data)``."""
    ctx = found.context().of(term)
    t = ctx.times("t", law, path)
    x0 = found.data["x0"]
    eps = ctx.normal("eps", x0)
    return path.noise(x0, eps, t), t, path.velocity(x0, eps, t)


@pytest.mark.parametrize("path", [LINEAR, TRIG, paths.trigflow(0.5)])
@pytest.mark.parametrize("teacher", [True, False])
def test_scm_without_its_tangent_is_flow_matching(path, teacher):
    law = LogNormal(-1.0, 1.4)
    method = scm(warmup=0.0, tangent=None, path=path, teacher=teacher, **PLAIN)
    found = play(method)
    x_t, t, v = noised(found, "tangent", law, path)
    cond = found.data["cond"]
    if teacher:
        v = bound(found, "teacher").velocity(cond, path=path)(x_t, t)
    output = bound(found, "student").velocity(cond, path=path)(x_t, t)
    factor = 1.0 if path == LINEAR else jnp.cos(t)[:, None] ** 2
    wanted = 0.5 * jnp.mean((factor * (output - v)) ** 2, -1)
    exact.allclose(found.values()["tangent"], wanted, 1e-9)


def test_scm_has_the_tangent_of_the_paper():
    """``cos t df/dt`` of the map to the data, by finite differences."""
    law = LogNormal(-1.0, 1.4)
    found = play(scm(warmup=1.0, tangent=None, **PLAIN))
    x_t, t, _ = noised(found, "tangent", law, TRIG)
    cond = found.data["cond"]
    v = bound(found, "teacher").velocity(cond, path=TRIG)(x_t, t)
    f = bound(found, "student").flow_map(cond, path=TRIG, two_time=False)
    h = 1e-5
    rate = (f(x_t + h * v, t + h, 0.0) - f(x_t - h * v, t - h, 0.0)) / (2 * h)
    wanted = 0.5 * jnp.mean((jnp.cos(t)[:, None] * rate) ** 2, -1)
    # The direction on F is this rate over -sin t, times cos t sin t.
    exact.allclose(found.values()["tangent"], wanted, 1e-6)


def test_scd_of_a_teacher_with_the_velocity_of_the_data_is_sct():
    point = oracles.Gaussian(jnp.asarray([0.4, -0.2]), jnp.zeros(2))
    data = {"x0": jnp.broadcast_to(point.mean, (16, 2))}
    teacher = oracles.network(point, TRIG)
    distilled, trained = (
        play(scm(teacher=on, warmup=0.7, **PLAIN), data=data, **nets).values()
        for on, nets in ((True, {"teacher": teacher}), (False, {}))
    )
    exact.allclose(distilled["tangent"], trained["tangent"], 1e-9)


def test_a_normalised_tangent_is_shorter_than_one():
    values = play(scm(warmup=1.0, **PLAIN)).values()["tangent"]
    assert bool(jnp.all(values > 0))
    assert bool(jnp.all(values < 0.5 / 2))


def test_the_learned_weight_has_no_cap():
    method = scm(warmup=0.5, prior=False)
    plain = play(scm(warmup=0.5, **PLAIN)).values()["tangent"]
    for size in (8.7, -8.7):
        # The last feature is the time.
        rows = jnp.zeros(2 * len(toy.FREQUENCIES) + 1).at[-1].set(size)
        found = play(method, given={"log_weight": {"w": rows}})
        t = found.context().of("tangent").times("t", LogNormal(-1.0, 1.4), TRIG)
        w = size * t
        assert float(jnp.abs(w).max()) > 8.0
        exact.allclose(found.values()["tangent"], jnp.exp(w) * plain - w, 1e-6)
        slope = found.gradients()["log_weight"]["w"][-1]
        exact.allclose(slope, jnp.mean(t * (jnp.exp(w) * plain - 1.0)), 1e-5)


def test_the_prior_can_be_one_over_sigma_of_another_path():
    ours, theirs = (
        play(scm(warmup=0.5, prior=True, prior_path=path, **PLAIN))
        for path in (None, LINEAR)
    )
    t = ours.context().of("tangent").times("t", LogNormal(-1.0, 1.4), TRIG)
    ratio = theirs.values()["tangent"] / ours.values()["tangent"]
    exact.allclose(ratio, 1.0 + jnp.tan(t), 1e-5)


@pytest.mark.parametrize("path", [LINEAR, TRIG, paths.trigflow(0.5)])
def test_scm_vanishes_on_the_exact_map(path):
    oracle = exact.gaussian()
    nets = {
        "student": exact_jumper(oracle, path),
        "teacher": oracles.network(oracle, path),
    }
    method = scm(warmup=1.0, tangent=None, path=path, **PLAIN)
    assert float(play(method, **nets).values()["tangent"].max()) < 1e-20
    wrong = {**nets, "teacher": oracles.network(oracles.Gaussian(0.0, 1.0), path)}
    assert float(play(method, **wrong).values()["tangent"].max()) > 1e-3


def test_mean_flow_vanishes_on_the_exact_map():
    oracle = exact.gaussian()
    nets = {
        "student": oracles.network(oracle, LINEAR, two_time=True),
        "teacher": oracles.network(oracle, LINEAR),
    }
    method = mean_flow(law=Pair(diagonal=0.25, to_data=0.3), p=0.0)
    assert float(play(method, **nets).values()["average"].max()) < 1e-20
    wrong = {
        **nets,
        "student": oracles.network(oracles.Gaussian(0.0, 1.0), LINEAR, two_time=True),
    }
    assert float(play(method, **wrong).values()["average"].max()) > 1e-3


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 2), (Heun(), 3)])
def test_cm_cd_on_the_exact_map_leaves_the_error_of_one_solver_step(solver, order):
    oracle = exact.gaussian()
    jumper = exact_jumper(oracle, LINEAR)

    def error(h):
        method = cm_cd(segments=1, grid=Two(0.6, 0.6 - h), solver=solver)
        nets = {"student": jumper, "target": jumper}
        found = play(method, teacher=oracles.network(oracle, LINEAR), **nets)
        return float(jnp.sqrt(jnp.mean(found.values()["agree"])))

    ratio = error(0.04) / error(0.02)
    assert 2**order * 0.9 < ratio < 2**order * 1.1


@dataclasses.dataclass(frozen=True)
class Two:
    """A grid of one segment that does not end at the data."""

    t: float
    s: float

    def __call__(self, steps, path):
        return self.t, self.s


def with_guidance(name, guidance):
    options = {**cases.CASES[name].options, "guidance": guidance}
    return build(name, **{**options, **({"steps": (1,)} if "steps" in options else {})})


@pytest.mark.parametrize("name", GUIDED)
def test_a_teacher_that_ignores_labels_makes_guidance_idle(name):
    base = toy.mlp(cases.SHAPE, second_time=True, num_classes=cases.CLASSES)

    def blind(key):
        params = base.init(key)
        return {**params, "label": jax.tree.map(jnp.zeros_like, params["label"])}

    teacher = dataclasses.replace(base, init=blind)
    plain, guided = (
        play(with_guidance(name, w), teacher=teacher).values() for w in (1.0, 3.0)
    )
    seeing = play(with_guidance(name, 3.0)).values()
    term = next(iter(plain))
    for found in plain:
        exact.allclose(guided[found], plain[found], 1e-8)
    assert not np.allclose(guided[term], seeing[term], rtol=1e-3)


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_without_a_null_condition_is_refused(name):
    bare = toy.mlp(cases.SHAPE, second_time=True, name="bare")
    play(with_guidance(name, 1.0), backbone=bare)
    with pytest.raises(ValueError, match="'teacher' needs .* null, and 'bare'.*null="):
        play(with_guidance(name, 2.0), backbone=bare)


@pytest.mark.parametrize("name", ["flow_matching", "scm", "mean_flow"])
def test_label_dropout_without_a_null_condition_is_refused(name):
    bare = toy.mlp(cases.SHAPE, second_time=True, name="bare")
    with pytest.raises(ValueError, match="'student' needs .*null.*'bare'"):
        play(build(name, label_dropout=0.1), backbone=bare)
