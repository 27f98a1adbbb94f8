"""Compositions and distribution matching: exact sums and points of rest, in float64."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import losses, oracles, paths
from distilljax.core.binding import Bound, Nets, Network
from distilljax.core.composition import compose
from distilljax.core.context import Context
from distilljax.core.draws import Jump, Rollout
from distilljax.core.method import Phase, Term
from distilljax.diffusion.times import (
    ArctanNormal,
    EvenGrid,
    InClock,
    LogNormal,
    Mixture,
    Point,
    Product,
    Ramp,
    Shifted,
    Uniform,
    value_at,
)
from distilljax.methods import (
    dmd2,
    gdmd,
    ladd,
    mean_flow,
    rcm,
    sana_sprint,
    scm,
    sid,
)
from distilljax.methods.composed.rcm import RCM_GRID
from distilljax.methods.matching._gap import match_scores
from tests import exact
from tests.methods.played import exact_jumper, play, vanishes

pytestmark = pytest.mark.usefixtures("x64")

LINEAR, TRIG = paths.linear(), paths.trigflow()
PLAIN = {"learned_weight": False}
# With slots a rollout has no branches, which would compile in every test.
MATCHING = {"gan_weight": 0, "steps": (1, 2), "slots": (2, 1, 1), "critic_steps": 2}


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
            "scm_options": {"warmup": 0.5, "state_only": False},
            "grid": EvenGrid(),
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
    alone = scm(warmup=Ramp(7), state_only=True, **PLAIN)
    same(student(method, step=6), combined((100.0, student(alone, step=6))))


def test_rcm_matches_and_simulates_in_the_clock_of_rectified_flow():
    critic, phase = rcm().phases
    made = phase.draws["x"]
    law = InClock(Shifted(Uniform(), 5.0))
    assert made == critic.draws["x"] == Rollout((1, 2, 3, 4), RCM_GRID, TRIG, law=law)
    fixed = rcm(grid=EvenGrid()).phases[1].draws["x"]
    assert fixed == Rollout((1, 2, 3, 4), EvenGrid(), TRIG)


@pytest.mark.parametrize("path", [TRIG, LINEAR, paths.edm()])
def test_rcm_samples_from_the_released_angles_on_every_path(path):
    start = np.arctan(80.0)
    for count in (1, 2, 3, 4):
        times = jnp.asarray(rcm().sampling.grid(count, path))
        wanted = (start, 1.5, 1.4, 1.0)[:count]
        exact.allclose(path.angle(times), jnp.asarray((*wanted, 0.0)), 1e-6)
    assert rcm(grid=EvenGrid()).sampling.grid == EvenGrid()
    assert rcm(sampling_grid=EvenGrid()).sampling.grid == EvenGrid()


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
    c = match_scores(ctx.of("match"), Point(0.3), None, 1.0, floor=0.0)
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


SPRINT = {"warmup": 0, "scm_options": {"warmup": 0.5, "learned_weight": False}}


def test_sana_sprint_without_its_gan_is_scm():
    law = ArctanNormal(0.2 + np.log(2.0), 1.6)
    method = sana_sprint(adversarial_weight=0, **SPRINT)
    assert [phase.name for phase in method.phases] == ["student"]
    same(student(method), combined((2.0, student(scm(law=law, warmup=0.5, **PLAIN)))))


def test_sana_sprint_is_the_weighted_sum_of_scm_and_ladd():
    law, noise = (
        ArctanNormal(mean + np.log(2.0), std) for mean, std in ((0.2, 1.6), (-0.6, 1.0))
    )
    jump = Jump(Mixture(((0.5, Point(1.0)), (0.5, law))), path=TRIG)
    gan = ladd(draw=jump, law=noise, misaligned=True, critic_weight=0.5, path=TRIG)
    parts = scm(law=law, warmup=0.5, **PLAIN), gan
    found = sana_sprint(adversarial_weight=0.75, **SPRINT)
    wanted = combined((2.0, student(parts[0])), (0.75, student(gan)))
    same(student(found), wanted)
    plain = sana_sprint(adversarial_weight=0.75, scm_weight=1.0, **SPRINT)
    wanted = combined((1.0, student(parts[0])), (0.75, student(gan)))
    same(student(plain), wanted)
    critic = play(gan, phase="discriminator").gradients()
    same(play(found, phase="discriminator").gradients(), critic)
    assert [c.id for c in found.cite] == ["sana_sprint", "scm", "ladd"]


def test_sana_sprint_weighs_its_consistency_in_units_of_the_network():
    method = sana_sprint(path=paths.trigflow(0.5), guidance=1.0)
    terms = {term.name: term.weight for term in method.phases[-1].terms}
    assert terms == {"tangent": 4.0, "fool": 0.5}


def test_at_image_size_the_learned_weight_levels_the_consistency_of_sana_sprint():
    """At its optimum ``log(2 D sigma_d tan t)``, 9 to 13 here, the loss is 1."""
    shape, path = (32, 32, 32), paths.trigflow(0.5)
    size = 32**3

    def field(gain):
        def apply(params, x, t, cond=None, s=None, **options):
            return jnp.sin(gain * x) * jnp.cos(t)[:, None, None, None]

        return Network("field", apply, lambda key: {}, path, "F")

    def optimum(params, t):
        return jnp.log(2.0 * size * path.sigma_d * jnp.tan(t))

    weight = Network("weight", None, lambda key: {}, functions={"log_weight": optimum})
    nets = {"student": field(1.0), "teacher": field(2.0), "log_weight": weight}
    method = sana_sprint(
        adversarial_weight=0, warmup=0, law=Uniform(0.1, 0.9), path=path
    )
    (term,) = method.phases[0].terms
    zero = jnp.asarray(0)
    ctx = Context(
        nets=Nets({name: Bound(name, net, {}) for name, net in nets.items()}),
        data={"x0": 0.5 * exact.normal(0, 4, *shape)},
        step=zero,
        repeat=zero,
        memory={},
        root=jax.random.key(0),
        batch_size=4,
        sample_shape=shape,
    ).of("tangent")
    t = ctx.of("tangent").times("t", Uniform(0.1, 0.9), path)
    value = jax.jit(lambda: term.loss(ctx.of("tangent")).values)()
    np.testing.assert_allclose(value + optimum({}, t), 1.0, atol=0.02)
    assert term.weight == 4.0


def test_misaligned_data_is_the_data_of_a_neighbour_under_noise_of_its_own():
    found = play(sana_sprint(**SPRINT), phase="discriminator")
    ctx = found.context().of("tell_apart")
    x0, cond = found.data["x0"], found.data["cond"]
    law = ArctanNormal(-0.6 + np.log(2.0), 1.0)

    def logits(x0, name):
        t = ctx.times(f"t_{name}", law, TRIG)
        x_t = TRIG.noise(x0, ctx.normal(f"eps_{name}", x0), t)
        _, taps = ctx.nets.teacher.denoised_and_taps(cond, x_t, t, path=TRIG)
        share = t / TRIG.t_max
        return ctx.nets.discriminator.call("logits", taps, share, cond)

    real = logits(x0, "real")
    other = logits(jnp.roll(x0, 1, 0), "misaligned")
    hinge = losses.discriminator_hinge(real, other)
    plain = sana_sprint(misaligned=False, **SPRINT)
    aligned = play(plain, phase="discriminator").values()["tell_apart"]
    wanted = 0.5 * (aligned + hinge)
    exact.allclose(found.values()["tell_apart"], wanted, 1e-9)


def test_sana_sprint_trains_the_heads_alone_against_its_student():
    method = sana_sprint(**SPRINT)
    found = play(method, phase="discriminator").gradients()
    assert set(found) == {"discriminator"}
    assert [phase.name for phase in method.phases] == ["discriminator", "student"]
    assert [phase.repeat for phase in method.phases] == [1, 1]
