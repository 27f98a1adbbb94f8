"""CTM: formulas, points of rest, balanced gradients and the adversarial term."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import losses, oracles, paths
from distilljax.core.binding import Network
from distilljax.diffusion.solvers import Euler
from distilljax.diffusion.times import EvenGrid, LogNormal, Point, Ramp, Switch
from distilljax.methods import ctm
from distilljax.methods.trajectory.ctm import Balanced, Share, _hops, _uniform_index
from distilljax.methods.weights import inverse_gap
from tests import exact, toy
from tests.methods.played import ExactStep, play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()
EVEN = {"grid": EvenGrid(), "dsm_weight": 0.0}


def bound(found, role):
    return found.context().nets[role]


def half_mean_square(x):
    return 0.5 * jnp.mean(x**2, -1)


@pytest.mark.parametrize("path", [LINEAR, paths.trigflow(0.5)])
def test_ctm_rests_on_the_exact_map(path):
    oracle = exact.gaussian()
    jumper = oracles.network(oracle, path, two_time=True)
    nets = {"teacher": oracles.network(oracle, path), "target": jumper}

    def largest(solver, student=jumper):
        method = ctm(segments=5, solver=solver, path=path, **EVEN)
        return float(play(method, student=student, **nets).values()["agree"].max())

    assert largest(ExactStep()) < 1e-14
    assert largest(Euler()) > 1e-8
    wrong = oracles.network(oracles.Gaussian(0.0, 1.0), path, two_time=True)
    assert largest(ExactStep(), wrong) > 1e-3


def test_ctm_on_one_segment_regresses_the_end_of_the_teacher():
    found = play(ctm(segments=1, solver=Euler(), **EVEN))
    cond = found.data["cond"]
    noise = found.context().of("ends").normal("eps")
    one = jnp.ones(16)
    end = noise - bound(found, "teacher").apply(noise, one, cond)
    made = noise - bound(found, "student").apply(noise, one, cond, 0.0 * one)
    exact.allclose(found.values()["agree"], half_mean_square(made - end), 1e-10)


def test_the_two_ends_of_ctm():
    """Estimate ``f^-(f(x_t, t, s), s, 0)``; the outer map passes the gradient."""
    found = play(ctm(segments=3, solver=Euler(), **EVEN), batch_size=64)
    ctx = found.context().of("ends")
    hops = _hops(ctx, 3)
    first = _uniform_index(ctx, "first", 0, 3 - hops)
    last = _uniform_index(ctx, "last", first + hops, 3)
    assert int(first.min()) == 0
    assert int(last.max()) == 3
    assert bool(jnp.all(last >= first + hops))
    cond, teacher = found.data["cond"], bound(found, "teacher")
    t, s = 1.0 - first / 3.0, 1.0 - last / 3.0
    x_t = x = LINEAR.noise(found.data["x0"], ctx.normal("eps"), t)
    for k in range(int(hops)):
        x = x - teacher.apply(x, t - k / 3.0, cond) / 3.0
    u = t - hops / 3.0
    student, outer = bound(found, "student"), bound(found, "target").flow_map(cond)

    def loss(params):
        f = dataclasses.replace(student, params=params).flow_map(cond)
        target = outer(student.flow_map(cond)(x, u, s), s, 0.0)
        return jnp.mean(half_mean_square(outer(f(x_t, t, s), s, 0.0) - target))

    value, grads = jax.value_and_grad(loss)(student.params)
    exact.allclose(jnp.mean(found.values()["agree"]), value, 1e-5)
    for a, b in zip(
        jax.tree.leaves(found.gradients()["student"]), jax.tree.leaves(grads)
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_both_ends_of_ctm_are_mapped_to_the_last_time_of_the_grid():
    path = paths.edm()
    net = toy.mlp(path=path, prediction="x0", second_time=True, num_classes=3)
    found = play(ctm(segments=4), backbone=net)
    ends, cond = found.context().data["ends"], found.data["cond"]
    t, s = ends["t"], ends["s"]
    assert float(s.min()) == pytest.approx(path.boundary)
    x_t = path.noise(found.data["x0"], found.context().of("ends").normal("eps"), t)
    f, outer = (
        bound(found, role).flow_map(cond, path=path) for role in ("student", "target")
    )
    wanted = outer(f(x_t, t, s), s, jnp.full_like(s, path.boundary))
    exact.allclose(ends["estimate"], wanted, 1e-6)


def test_the_steps_of_the_teacher_have_a_largest_number():
    one, all_, plain = (
        play(ctm(segments=6, **more, **EVEN)).values()["agree"]
        for more in ({"most_hops": 1}, {"most_hops": 6}, {})
    )
    np.testing.assert_array_equal(all_, plain)
    # A target one step on is nearer to the student's own end.
    assert float(jnp.mean(one)) < float(jnp.mean(plain))
    with pytest.raises(ValueError, match=r"most_hops must lie in 1 \.\. segments = 6"):
        ctm(segments=6, most_hops=7)


def test_the_distance_of_ctm_has_a_weight_of_both_levels():
    found = play(ctm(segments=3, **EVEN))
    ends = found.context().data["ends"]
    weighted = play(ctm(segments=3, weight=inverse_gap, **EVEN))
    t, s = (ends[n] / (1.0 - ends[n] + 1e-8) for n in ("t", "s"))
    inner = np.asarray(ends["t"] < 1.0)
    ratio = weighted.values()["agree"] / found.values()["agree"]
    exact.allclose(ratio[inner], (1.0 / (t - s))[inner], 1e-5)


def test_the_denoising_term_of_ctm_has_the_weight_of_edm():
    path, law = paths.edm(), LogNormal(-1.2, 1.2)
    net = toy.mlp(path=path, prediction="x0", second_time=True, num_classes=3)
    method = ctm(segments=3, balance=False, dsm_law=law)
    found = play(method, backbone=net)
    ctx = found.context().of("denoise")
    t, x0 = ctx.times("t", law, path), found.data["x0"]
    x_t = x0 + t[:, None] * ctx.normal("eps", x0)
    denoised = bound(found, "student").denoiser(found.data["cond"])(x_t, t)
    sd = path.sigma_d
    weight = (t**2 + sd**2) / (t * sd) ** 2
    wanted = weight * half_mean_square(denoised - x0)
    exact.allclose(found.values()["denoise"], wanted, 1e-6)


def test_balanced_terms_have_gradients_of_one_length():
    rule = Balanced("agree", (Share("denoise", 0.5),))
    lead, other = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.0, 100.0])}
    total = rule({"agree": lead, "denoise": other}, jnp.zeros(()))
    exact.allclose(total["w"], jnp.array([3.0, 4.0 + 2.5]), 1e-5)
    small = {"w": jnp.array([0.0, 1e-9])}
    capped = Balanced("agree", (Share("denoise", high=10.0),))
    total = capped({"agree": lead, "denoise": small}, jnp.zeros(()))
    exact.allclose(total["w"], lead["w"] + 10.0 * small["w"])


def test_ctm_adds_its_balanced_gradients():
    method = ctm(segments=3, grid=EvenGrid(), dsm_weight=0.25)
    by_term = play(method).gradients()
    total = method.phases[0].merge(by_term, 0)["student"]
    alone = play(ctm(segments=3, **EVEN)).gradients()["student"]
    rest = jax.tree.map(jnp.subtract, total, alone)
    along = by_term["denoise"]["student"]
    sizes = [
        float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(tree))))
        for tree in (rest, alone, along)
    ]
    assert sizes[0] == pytest.approx(0.25 * sizes[1], rel=2e-3)
    # The balance changes the length of the second gradient, not where it points.
    for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(along)):
        np.testing.assert_allclose(a / sizes[0], b / sizes[2], atol=1e-6)


GAN = {**EVEN, "segments": 3, "gan_start": 0}


def judge(weight=(0.6, -1.1)):
    """Linear logits of a clean sample; its taps are (x,) or x."""

    def logits(params, features, t, cond=None):
        return features @ params["w"] + t

    return Network(
        "judge",
        None,
        lambda key: {"w": jnp.asarray(weight)},
        functions={"logits": logits},
    )


def encoder():
    """A feature network: twice the sample, without parameters that matter."""
    return Network(
        "encoder",
        None,
        lambda key: {"gain": jnp.asarray(2.0)},
        functions={"encode": lambda params, x: params["gain"] * x},
    )


@pytest.mark.parametrize("features", [None, "encoder"])
def test_the_discriminator_may_see_samples_or_given_features(features):
    nets = {"discriminator": judge(), "encoder": encoder()}
    method = ctm(gan_weight=1.0, features=features, **GAN)
    assert ("encoder" in method.roles) == (features is not None)
    gain = 1.0 if features is None else 2.0
    found = play(method, **nets)
    w = gain * bound(found, "discriminator").params["w"]
    estimate = found.context().data["ends"]["estimate"]
    exact.allclose(found.values()["fool"], -(estimate @ w), 1e-10)
    critic = play(method, phase="discriminator", **nets)
    fake = critic.context().data["ends"]["estimate"] @ w
    wanted = losses.discriminator_hinge(critic.data["x0"] @ w, fake)
    exact.allclose(critic.values()["tell_apart"], wanted, 1e-10)
    assert set(critic.gradients()) == {"discriminator"}


def test_the_teachers_features_are_judged_at_noised_samples():
    method = ctm(gan_weight=1.0, gan_law=Point(0.3), **GAN)
    assert "taps" in method.roles["teacher"].needs
    found = play(method)
    ctx = found.context()
    x = ctx.data["ends"]["estimate"]
    x_t = LINEAR.noise(x, ctx.of("fool").normal("eps", x), jnp.full(16, 0.3))
    t = jnp.full(16, 0.3, jnp.float32)
    _, taps = bound(found, "teacher").denoised_and_taps(ctx.cond, x_t, t)
    logits = bound(found, "discriminator").call("logits", taps, t, ctx.cond)
    exact.allclose(found.values()["fool"], -logits, 1e-6)


def test_the_adversarial_gradient_is_balanced_within_its_limits():
    """``weight clip(|g_ctm| / |g_gan|, 0.01, 10)`` times the gradient."""

    def gradients(scale, weight):
        nets = {"discriminator": judge((0.6 * scale, -1.1 * scale))}
        method = ctm(gan_weight=weight, features=None, **GAN)
        found = play(method, same=("discriminator",), **nets)
        by_term = found.gradients()
        total = method.phases[1].merge(by_term, jnp.asarray(4))
        return by_term["agree"], by_term["fool"], total

    def size(tree):
        return float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(tree))))

    for scale, weight, by in ((1.0, 0.5, 0.5), (1.0, Ramp(8, 0.0, 1.0), 0.5)):
        lead, gan, total = gradients(scale, weight)
        added = jax.tree.map(jnp.subtract, total, lead)
        assert 0.01 < size(lead) / size(gan) < 10.0
        assert size(added) == pytest.approx(by * size(lead), rel=2e-3)
    for scale, limit in ((1e5, 0.01), (1e-5, 10.0)):
        lead, gan, total = gradients(scale, 1.0)
        added = jax.tree.map(jnp.subtract, total, lead)
        assert size(added) == pytest.approx(limit * size(gan), rel=1e-5)


def test_the_adversarial_term_starts_late_and_is_off_by_default():
    method = ctm(gan_weight=Switch(3, 0.0, 1.0), gan_start=5)
    for step, names in ((4, ["student"]), (5, ["discriminator", "student"])):
        assert [p.name for p in method.phases_at(step)] == names
    assert set(ctm().roles) == {"student", "teacher", "target"}
    assert not ctm().stages
    before = play(method, step=4).values()
    exact.allclose(before["agree"], play(ctm(), step=4).values()["agree"], 1e-12)
    assert set(before) == {"agree", "denoise"}
    plain = ctm(gan_weight=0.1, balance=False, gan_start=0)
    assert plain.phases[1].merge is None
    assert {t.name: t.weight for t in plain.phases[1].terms}["fool"] == 0.1
