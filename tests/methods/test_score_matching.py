"""Diff-Instruct, DMD, f-distill and TDM: reductions and points of rest, in float64."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import losses, oracles, paths
from distilljax.core.composition import compose
from distilljax.core.draws import StoredPairs
from distilljax.diffusion.times import Point, central
from distilljax.losses import DIVERGENCES, skew
from distilljax.losses.metrics import half_mse
from distilljax.methods import diff_instruct, dmd, dmd2, f_distill, mean_flow, tdm
from distilljax.methods.matching._gap import match_scores
from tests import exact
from tests.methods import cases
from tests.methods.played import exact_jumper, play, vanishes

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()
SPREAD = np.asarray([0.8, 0.5])
REAL = oracles.Gaussian(np.asarray([0.7, -0.3]), SPREAD)
FAKE = oracles.Gaussian(np.asarray([-0.2, 0.4]), SPREAD)


def student(method, **options):
    return play(method, **options).gradients()["student"]


def critic(method, **options):
    return play(method, phase="fake_score", **options).gradients()


def same(found, wanted, tol=1e-10):
    size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted))
    assert size > 0
    chex.assert_trees_all_close(found, wanted, rtol=tol, atol=tol * size)


def differ(found, wanted):
    with pytest.raises(AssertionError):
        same(found, wanted, 1e-3)


@pytest.mark.parametrize(
    "method",
    [diff_instruct(), dmd(regression_weight=0), tdm(steps=(2,))],
    ids=lambda m: m.name,
)
def test_students_stand_still_when_both_scores_agree(method):
    vanishes(student(method, same=("fake_score",)))
    with pytest.raises(AssertionError):
        vanishes(student(method))


def test_diff_instruct_descends_the_integral_kl_divergence():
    """The gap times ``alpha^2/sigma^2`` is ``-d KL(q_t|p_t)/da`` at every point."""
    at = 0.3
    found = play(
        diff_instruct(law=Point(at)),
        teacher=oracles.network(REAL, LINEAR),
        fake_score=oracles.network(FAKE, LINEAR),
    )

    def kl(mean):
        alpha, variance = 1 - at, ((1 - at) * SPREAD) ** 2 + at**2
        return jnp.sum((alpha * (mean - REAL.mean)) ** 2 / (2 * variance))

    # 0.5 mean(gap^2) over two elements, the gap the same for every sample.
    gap = jax.grad(kl)(FAKE.mean) * at**2 / (1 - at) ** 2
    wanted = jnp.full(16, 0.5 * jnp.mean(gap**2))
    exact.allclose(found.values()["match"], wanted, 1e-6)


def test_diff_instruct_is_matching_without_the_normaliser():
    law = central(0.02)
    found = play(diff_instruct(law=law))
    ctx = found.context()
    c = match_scores(ctx.of("match"), law, None, 1.0, floor=0.0)
    own = ctx.of("match")
    x, t = ctx.data["x"], own.times("t", law)
    x_t = LINEAR.noise(x, own.normal("eps", x), t)
    real = ctx.nets.teacher.denoiser(ctx.cond)(x_t, t)
    error = jnp.mean(jnp.abs(x - real), -1, keepdims=True)
    wanted = 0.5 * jnp.mean((c.direction * error) ** 2, -1)
    exact.allclose(found.values()["match"], wanted, 1e-8)


def test_dmd_without_pairs_is_dmd2_without_its_gan():
    alone = dmd(regression_weight=0, critic_steps=5)
    wanted = dmd2(steps=(1,), gan_weight=0)
    same(student(alone), student(wanted))
    same(critic(alone), critic(wanted))
    assert [p.repeat for p in alone.phases] == [p.repeat for p in wanted.phases]
    assert alone.batch == wanted.batch


def pairs(oracle, count=16):
    noise = exact.normal(7, count, 2)
    return {
        "eps": noise,
        "x0": oracle.flow_map(LINEAR)(noise, 1.0, 0.0),
    }


def test_dmd_regresses_on_pairs_of_the_batch():
    method = dmd(pairs=StoredPairs())
    assert method.batch == {"eps", "x0"}
    data, jumper = pairs(REAL), exact_jumper(REAL, LINEAR)
    found = play(method, data=data, student=jumper).values()
    assert float(found["reach"].max()) < 1e-20
    moved = {**data, "x0": data["x0"] + jnp.asarray([0.2, 0.0])}
    found = play(method, data=moved, student=jumper).values()
    exact.allclose(found["reach"], jnp.full(16, 0.5 * 0.2**2 / 2), 1e-10)


def test_dmd_adds_the_weighted_regression_to_its_gap():
    data = pairs(REAL)
    parts = [
        student(dmd(pairs=StoredPairs(), regression_weight=w), data=data)
        for w in (0.5, 1.5, 3.5)
    ]
    same(
        jax.tree.map(lambda a, b: (b - a) / 2.0, parts[1], parts[2]),
        jax.tree.map(lambda a, b: b - a, parts[0], parts[1]),
    )
    gap = student(dmd(regression_weight=0))
    slope = jax.tree.map(lambda a, b: b - a, parts[0], parts[1])
    same(jax.tree.map(lambda a, b: a - 0.5 * b, parts[0], slope), gap, 1e-9)


def test_pairs_of_a_draw_are_the_teachers_own_trajectories():
    nets = {"teacher": oracles.network(REAL, LINEAR)}
    right = play(dmd(), student=exact_jumper(REAL, LINEAR), **nets)
    wrong = play(dmd(), student=exact_jumper(FAKE, LINEAR), **nets)
    # Heun's error of 16 steps against the exact map.
    assert float(right.values()["reach"].max()) < 1e-5
    assert float(wrong.values()["reach"].min()) > 1e-2


def test_reverse_kl_is_dmd2():
    options = {"steps": (1,), "gan_weight": 3e-3}
    wanted = dmd2(**options)
    # The weight is 1/(1 + 1e-6).
    same(student(f_distill(divergence="rkl", **options)), student(wanted), 1e-5)
    differ(student(f_distill(divergence="chi2", **options)), student(wanted))
    same(critic(f_distill(**options)), critic(wanted))


def blind():
    """A head that says the same logit of everything."""
    head = cases.networks()["discriminator"]
    functions = {"logits": lambda params, h, t, cond=None: 0.7 + 0.0 * h[0][:, 0]}
    return dataclasses.replace(head, functions=functions)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@pytest.mark.parametrize("bins", [0, 4])
def test_a_constant_ratio_weighs_nothing(name, bins):
    method = f_distill(divergence=name, bins=bins)
    found = play(method, discriminator=blind())
    plain = play(dmd2(steps=(1,)), discriminator=blind()).values()["match"]
    exact.allclose(found.values()["match"], plain, 1e-5)


def test_the_weight_is_h_of_the_ratio_at_the_point_of_the_gap():
    law = central(0.02)
    divergence = skew(0.3)
    found = play(f_distill(divergence=divergence, bins=0, law=law))
    ctx = found.context()
    own = ctx.of("match")
    x, t = ctx.data["x"], own.times("t", law)
    x_t = LINEAR.noise(x, own.normal("eps", x), t)
    taps = ctx.nets.fake_score.denoised_and_taps(ctx.cond, x_t, t)[1]
    logits = ctx.nets.discriminator.call("logits", taps, t, ctx.cond)
    weight = divergence.h(jnp.clip(jnp.exp(logits), 0.1, 20.0))
    plain = losses.regress(match_scores(ctx.of("match"), law, None, 1.0))
    wanted = plain * weight / (jnp.mean(weight) + 1e-6)
    exact.allclose(found.values()["match"], wanted, 1e-5)
    assert float(jnp.std(weight)) > 1e-2


@pytest.mark.parametrize("build", [dmd2, f_distill])
def test_a_discriminator_on_the_teachers_features_leaves_the_fake_score_alone(build):
    method = build(steps=(1,), features="teacher")
    assert "taps" in method.roles["teacher"].needs
    assert "taps" not in method.roles["fake_score"].needs
    found = critic(method)
    alone = critic(dmd2(steps=(1,), gan_weight=0))
    same(found["fake_score"], alone["fake_score"])
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(found)) > 0
    differ(critic(build(steps=(1,)))["fake_score"], alone["fake_score"])


def test_the_ratio_may_be_read_from_the_teachers_features():
    options = {"steps": (1,), "features": "teacher", "gan_weight": 3e-3}
    same(
        student(f_distill(divergence="rkl", **options)), student(dmd2(**options)), 1e-5
    )
    law, divergence = central(0.02), skew(0.3)
    found = play(f_distill(divergence=divergence, bins=0, law=law, features="teacher"))
    ctx = found.context()
    own, x = ctx.of("match"), ctx.data["x"]
    t = own.times("t", law)
    x_t = LINEAR.noise(x, own.normal("eps", x), t)
    taps = ctx.nets.teacher.denoised_and_taps(ctx.cond, x_t, t)[1]
    logits = ctx.nets.discriminator.call("logits", taps, t, ctx.cond)
    weight = divergence.h(jnp.clip(jnp.exp(logits), 0.1, 20.0))
    plain = losses.regress(match_scores(ctx.of("match"), law, None, 1.0))
    wanted = plain * weight / (jnp.mean(weight) + 1e-6)
    exact.allclose(found.values()["match"], wanted, 1e-5)
    with pytest.raises(ValueError, match="features must be 'fake_score' or 'teacher'"):
        f_distill(features="encoder")


def test_the_ratio_is_divided_by_its_running_mean_in_its_bin():
    law, bins, decay = Point(0.6), 4, 0.5
    method = f_distill(divergence="js", bins=bins, decay=decay, law=law)
    before = jnp.asarray([3.0, 5.0, 0.5, 7.0])
    found = play(method, memory={"ratio_means": before}, discriminator=blind())
    term = found.update.phase.terms[0]
    out = term.loss(found.context().of("match"))
    wanted = before.at[2].set(0.5 * 0.5 + 0.5 * np.exp(0.7))
    exact.allclose(out.memory["ratio_means"], wanted, 1e-6)


def test_f_distill_needs_its_discriminator_and_composes():
    with pytest.raises(ValueError, match="gan_weight must not be"):
        f_distill(gan_weight=0)
    joined = compose(f_distill(), mean_flow())
    start = joined.memory(16, (2,))["ratio_means"]
    np.testing.assert_array_equal(start, np.ones(10))


def test_tdm_with_one_step_is_dmd():
    options = {"critic_steps": 5}
    one = tdm(steps=(1,), metric=half_mse, **options)
    wanted = dmd(regression_weight=0, critic_law=central(0.02), **options)

    # Randomness is keyed by names: give the draw dmd's.
    def keyed(method):
        def renamed(phase):
            (term,) = phase.terms

            def loss(ctx):
                return term.loss(
                    dataclasses.replace(ctx, data={**ctx.data, "step": ctx.data["x"]})
                )

            return phase._replace(
                terms=(term._replace(loss=loss),), draws={"x": phase.draws["step"]}
            )

        return method._replace(phases=tuple(renamed(p) for p in method.phases))

    same(student(keyed(one)), student(wanted), 1e-6)
    same(critic(keyed(one)), critic(wanted), 1e-6)
    differ(student(keyed(tdm(steps=(1,)))), student(wanted))


def tau_of(method, batch_size=256):
    """The times at which a term of a phase looks, with the step of each sample."""
    seen = {}
    score = oracles.network(REAL, LINEAR)

    def apply(params, x, t, cond=None, s=None, **options):
        seen["t"] = t
        return score.apply(params, x, t)

    spy = dataclasses.replace(score, apply=apply)
    found = play(method, batch_size=batch_size, teacher=spy)
    step = found.context().data["step"]
    found.values()
    return seen["t"], step["t"], step["s"]


def test_separate_times_stay_inside_the_step():
    tau, t, s = tau_of(tdm(steps=(4,)))
    assert bool(jnp.all((s < tau) & (tau < t)))
    np.testing.assert_allclose(np.unique(t), [0.25, 0.5, 0.75, 1.0])
    tau, t, s = tau_of(tdm(steps=(4,), separate=False))
    assert bool(jnp.all((s < tau) & (tau < 1.0)))
    assert float(jnp.mean(tau > t)) > 0.2


@pytest.mark.parametrize("told", [False, True])
def test_the_critic_of_tdm_rests_at_the_score_of_the_renoised_states(told):
    """Exact though the noise of a state depends on its prediction.

    Told the end of its step, a critic tells the steps apart where their times overlap.
    """
    wrong_teacher = oracles.Gaussian(jnp.asarray([0.7, -0.3]), jnp.asarray([0.3, 1.2]))
    net = oracles.network(wrong_teacher, LINEAR)
    denoise = wrong_teacher.denoised(LINEAR)
    middle = 0.5

    def law_of(mean, variance, t, s):
        """Law after the student's step ``t -> s`` from a Gaussian state."""
        points = jnp.stack([mean, mean + 1.0])
        moved = LINEAR.jump(denoise(points, t), points, t, s)
        return moved[0], variance * (moved[1] - moved[0]) ** 2

    first = law_of(jnp.zeros(2), jnp.ones(2), 1.0, middle)
    second = law_of(*first, middle, 0.0)

    def score(x, t, s):
        """Denoiser of the states re-noised from ``first``, above the middle or told."""
        te = t[:, None]
        high = s[:, None] > 0.5 * middle if told else te > middle
        s = jnp.where(high, middle, 0.0)
        mean, variance = (jnp.where(high, a, b) for a, b in zip(first, second))
        ratio = (1 - te) / (1 - s)
        spread = ratio**2 * variance + te**2 - (ratio * s) ** 2
        return (x - te**2 * (x - ratio * mean) / spread) / (1 - te)

    def largest(shift):
        def apply(p, x, t, cond=None, s=None):
            velocity = (x - score(x, t, s)) / t[:, None] + shift
            return velocity + p["a"] * x + p["b"]

        tilted = dataclasses.replace(
            net,
            apply=apply,
            init=lambda key: {"a": jnp.zeros(2), "b": jnp.zeros(2)},
            capabilities=net.capabilities | ({"second_time"} if told else set()),
        )
        grads = critic(
            tdm(steps=(2,), separate=not told, told_end=told),
            batch_size=8192,
            same=("fake_score",),
            student=net,
            fake_score=tilted,
        )["fake_score"]
        return max(float(jnp.abs(g).max()) for g in grads.values())

    assert largest(0.0) < 0.03
    assert largest(0.5) > 0.1
