"""The checks and reductions that each method's paper implies, in float64."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import losses, oracles, paths
from distilljax.method import Phase, Term, compose
from distilljax.methods import (
    CATALOGUE,
    build,
    cm_cd,
    dmd2,
    gdmd,
    mean_flow,
    rcm,
    scm,
    sid,
)
from distilljax.methods.distribution import match_scores
from distilljax.solvers import Euler, Heun
from distilljax.times import LogNormal, Pair, Point, Product, Ramp, value_at
from tests import exact, toy
from tests.methods import cases
from tests.methods.played import exact_jumper, play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR, TRIG = paths.linear(), paths.trigflow()
PLAIN = {"learned_weight": False}
# With slots a rollout has no branches, which would compile in every test.
MATCHING = {"gan_weight": 0, "steps": (1, 2), "slots": (2, 1, 1), "critic_steps": 2}
GUIDED = sorted(
    n for n in CATALOGUE if "guidance" in CATALOGUE[n].factory.__kwdefaults__
)


def student(method, **options):
    return play(method, **options).gradients()["student"]


def combined(*parts):
    """Sum of ``(factor, gradients)``."""
    return jax.tree.map(
        lambda *g: sum(w * x for (w, _), x in zip(parts, g)), *(g for _, g in parts)
    )


def same(found, wanted, tol=1e-10):
    size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted))
    assert size > 0
    chex.assert_trees_all_close(found, wanted, rtol=tol, atol=tol * size)


def vanishes(gradients, tol=0.0):
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)) <= tol


@pytest.fixture(scope="module")
def parts(x64):
    """Student gradients of rcm's parts, each under its own name."""
    return (
        student(scm(warmup=0.5, **PLAIN)),
        student(dmd2(path=TRIG, **MATCHING)),
    )


def joined(**options):
    return rcm(
        **{
            "warmup": 0,
            "law": LogNormal(-1.0, 1.4),
            "dmd_law": dmd2.__kwdefaults__["law"],
            "scm_options": {"warmup": 0.5},
            "dmd_options": MATCHING,
            **options,
        }
    )


def test_rcm_is_the_weighted_sum_of_its_parts(parts):
    same(student(joined()), combined((100.0, parts[0]), (1.0, parts[1])))


@pytest.mark.parametrize(("weights", "kept"), [((3.0, 0), 0), ((0, 2.0), 1)])
def test_rcm_with_one_weight_is_one_part(parts, weights, kept):
    method = joined(scm_weight=weights[0], dmd_weight=weights[1])
    same(student(method), combined((weights[kept], parts[kept])))


def test_schedules_weigh_the_parts_at_their_cycle(parts):
    ramp = Ramp(10, 0.0, 50.0)
    method = joined(scm_weight=ramp, dmd_weight=Product(ramp, 0.5))
    a = student(scm(warmup=0.5, **PLAIN), step=4)
    b = student(dmd2(path=TRIG, **MATCHING), step=4)
    assert float(value_at(ramp, 4)) == 20.0
    same(student(method, step=4), combined((20.0, a), (10.0, b)))


def test_stages_of_compose_sum_what_runs_at_their_cycle():
    consistency = scm(warmup=0.5, **PLAIN)
    matching = dmd2(path=TRIG, warm_start=5, **MATCHING)
    method = compose(consistency, matching, weights={"scm": 3.0, "dmd2": 0.5})
    for step, names in ((4, ["student"]), (5, ["fake_score", "student"])):
        assert [p.name for p in method.phases_at(step)] == names
        a, b = (student(m, step=step) for m in (consistency, matching))
        same(student(method, step=step), combined((3.0, a), (0.5, b)))


def test_rcm_warms_up_on_its_consistency_part_alone():
    method = joined(warmup=7, scm_options={})
    alone = scm(warmup=Ramp(7), **PLAIN)
    same(student(method, step=6), combined((100.0, student(alone, step=6))))


def test_the_order_of_compose_does_not_matter():
    methods = (
        scm(warmup=0.5, **PLAIN),
        dmd2(path=TRIG, **MATCHING),
        mean_flow(path=TRIG, p=0.5),
    )
    # Weights are float32, so that others would round.
    weights = {"scm": 2.0, "dmd2": 0.25, "mean_flow": 0.75}
    wanted = combined(*((weights[m.name], student(m)) for m in methods))
    critic = play(methods[1], phase="fake_score").gradients()
    for order in itertools.permutations(methods):
        method = compose(*order, weights=weights)
        same(student(method), wanted)
        same(play(method, phase="fake_score").gradients(), critic)


def test_dmd2_stands_still_when_both_scores_agree():
    vanishes(student(dmd2(**MATCHING), same=("fake_score",)))
    with pytest.raises(AssertionError):
        vanishes(student(dmd2(**MATCHING)))


def test_sid_stands_still_when_both_scores_agree():
    method = sid(critic_steps=1)
    found = play(method, same=("fake_score",))
    np.testing.assert_array_equal(found.values()["fisher"], 0.0)
    vanishes(found.gradients()["student"], 1e-12)
    with pytest.raises(AssertionError):
        vanishes(student(method), 1e-6)


def test_the_gap_of_two_gaussians_is_its_closed_form():
    """``(a - m) sigma^2 / (alpha^2 v + sigma^2)``, the same at every point."""
    spread = jnp.asarray([0.8, 0.5])
    real = oracles.Gaussian(jnp.asarray([0.7, -0.3]), spread)
    fake = oracles.Gaussian(jnp.asarray([-0.2, 0.4]), spread)
    found = play(
        dmd2(law=Point(0.3), **MATCHING),
        teacher=oracles.network(real, LINEAR),
        fake_score=oracles.network(fake, LINEAR),
    )
    ctx = found.context()
    c = match_scores(ctx.of("match"), Point(0.3), None, 1.0)
    alpha, sigma = 0.7, 0.3
    gap = (real.mean - fake.mean) * sigma**2 / ((alpha * spread) ** 2 + sigma**2)
    x = ctx.data["x"]
    x_t = LINEAR.noise(x, ctx.of("match").normal("eps", x), sigma)
    error = jnp.mean(jnp.abs(x - real.denoised(LINEAR)(x_t, sigma)), -1, keepdims=True)
    exact.allclose(c.direction, gap / error, 1e-6)


def test_the_critic_rests_at_the_exact_score_of_the_samples():
    """Expected gradient of the fit: 0 at the exact score, not at another's."""
    oracle = exact.gaussian()

    def largest(shift):
        score = oracles.network(oracle._replace(mean=oracle.mean + shift), LINEAR)
        tilted = dataclasses.replace(
            score,
            apply=lambda p, x, t, *_: score.apply({}, x, t) + p["a"] * x + p["b"],
            init=lambda key: {"a": jnp.zeros(2), "b": jnp.zeros(2)},
        )
        found = play(
            dmd2(**MATCHING),
            phase="fake_score",
            batch_size=4096,
            same=("fake_score",),
            student=exact_jumper(oracle, LINEAR),
            fake_score=tilted,
        )
        grads = found.gradients()["fake_score"]
        return max(float(jnp.abs(g).max()) for g in grads.values())

    assert largest(0.0) < 0.05
    assert largest(1.0) > 0.15


def plain_matching(method, targets):
    """The same phase with dmd2's term averaged over the same points."""
    phase = method.phases[-1]

    def loss(ctx):
        law = gdmd.__kwdefaults__["law"]
        rows = [
            match_scores(ctx, law, None, 1.0, suffix=str(i)) for i in range(targets)
        ]
        return sum(losses.regress(c) for c in rows) / targets

    term = Term("rewarded", loss)
    new = Phase("student", ("student",), (term,), phase.draws)
    return method._replace(phases=(*method.phases[:-1], new))


def test_gdmd_with_equal_rewards_is_plain_matching():
    method = gdmd(targets=3, steps=(1,))
    equal = {"reward": {"scale": jnp.zeros(())}}
    wanted = student(plain_matching(method, 3))
    same(student(method, given=equal), wanted)
    same(student(gdmd(targets=3, steps=(1,), strength=0.0)), wanted)
    vanishes(student(gdmd(targets=3, steps=(1,), matching=0.0), given=equal))


def test_gdmd_leans_on_the_reward_and_rests_when_both_scores_agree():
    method = gdmd(targets=3, steps=(1,), strength=2.0)
    with pytest.raises(AssertionError):
        same(student(method), student(plain_matching(method, 3)), 1e-3)
    vanishes(student(method, same=("fake_score",)))


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


def test_the_learned_weight_is_capped():
    method = scm(warmup=0.5, prior=False)
    plain = play(scm(warmup=0.5, **PLAIN)).values()["tangent"]
    for size, cap in ((1e4, 5.0), (-1e4, -5.0)):
        rows = jnp.zeros(2 * len(toy.FREQUENCIES) + 1).at[-1].set(size)
        found = play(method, given={"log_weight": {"w": rows}})
        exact.allclose(found.values()["tangent"], np.exp(cap) * plain - cap, 1e-6)
        vanishes(found.gradients()["log_weight"])
    free = play(method, given={"log_weight": {"w": rows * 1e-4}})
    assert float(jnp.abs(free.gradients()["log_weight"]["w"]).max()) > 0


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
