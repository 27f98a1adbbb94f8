"""Discrete consistency training and denoising: closed forms and reductions."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import oracles, paths
from distilljax.core.binding import Network
from distilljax.diffusion.solvers import DDIM, Euler
from distilljax.diffusion.times import (
    EvenGrid,
    KarrasGrid,
    KarrasPoints,
    LogNormal,
    Point,
    Uniform,
    value_at,
)
from distilljax.losses.metrics import half_mse, sum_squares
from distilljax.methods import (
    cm_cd,
    cm_ct,
    denoising,
    ect,
    flow_matching,
    ict,
    lcm,
    weights,
)
from distilljax.methods.consistency._training import log_normal_segment
from distilljax.methods.curricula import (
    DoublingSegments,
    RootSegments,
    SegmentDecay,
    Shrink,
)
from tests import exact, toy
from tests.methods import cases
from tests.methods.played import play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR, EDM = paths.linear(), paths.edm(sigma_d=1.0)
LAW = LogNormal(-0.5, 1.0)


def agree(method, **options):
    return play(method, **options).values()["agree"]


def test_ect_at_a_gap_of_one_is_the_diffusion_loss():
    found = play(ect(gap=1.0, law=LAW))
    ctx = found.context().of("agree")
    t, x0 = ctx.times("t", LAW, LINEAR), found.data["x0"]
    x_t = LINEAR.noise(x0, ctx.normal("eps"), t)
    clean = ctx.nets.student.denoiser(found.data["cond"])(x_t, t)
    level = t / (1.0 - t)
    wanted = jnp.linalg.norm(clean - x0, axis=-1)
    exact.allclose(found.values()["agree"], wanted / level, 1e-9)
    scaled = agree(ect(gap=1.0, law=LAW, weight=weights.inverse_output_scale))
    exact.allclose(scaled, wanted * (level**2 + 1.0) / level**2, 1e-9)


def test_ect_follows_its_map_from_level_to_level():
    found = play(ect(gap=0.25, law=LAW, metric=half_mse))
    ctx = found.context().of("agree")
    t, x0, eps = ctx.times("t", LAW, LINEAR), found.data["x0"], ctx.normal("eps")
    level = np.asarray(t / (1.0 - t))
    wide = 0.25 * (1.0 + 8.0 / (1.0 + np.exp(level)))
    below = np.maximum(level * (1.0 - wide), 0.0)
    assert np.any(below == 0.0)
    assert np.any(below > 0.0)
    assert np.all(np.diff(below[np.argsort(level)]) >= 0.0)
    tau = jnp.asarray(below / (1.0 + below))
    denoised = ctx.nets.student.denoiser(found.data["cond"])
    target = denoised(LINEAR.noise(x0, eps, tau), tau)
    target = jnp.where((tau == 0.0)[:, None], x0, target)
    apart = denoised(LINEAR.noise(x0, eps, t), t) - target
    wanted = 0.5 * jnp.mean(apart**2, -1) / (level - below)
    exact.allclose(found.values()["agree"], wanted, 1e-8)


@pytest.mark.parametrize(
    "method",
    [
        lambda path: ect(gap=0.25, law=LAW, path=path),
        lambda path: ict(segments=20, path=path, boundary=0.0),
        lambda path: cm_ct(
            segments=20, grid=KarrasPoints(end=0.0), path=path, boundary=0.0
        ),
    ],
)
def test_levels_and_weights_do_not_depend_on_the_path(method):
    exact.allclose(agree(method(LINEAR)), agree(method(EDM)), 1e-7)


def test_the_gap_of_ect_shrinks_by_stages():
    gap = Shrink(800, stages=8, q=2.0)
    found = [float(value_at(gap, k)) for k in (0, 99, 100, 799, 5000)]
    assert found == [2.0**-1, 2.0**-1, 2.0**-2, 2.0**-8, 2.0**-8]
    assert float(value_at(Shrink(10, stages=1, q=1.0), 3)) == 1.0
    assert float(value_at(Shrink(160, stages=16), 159)) == 2.0**-16


def test_a_target_of_ect_near_the_data_is_asked_of_the_network():
    law, gap = Point(0.003 / 80.0), 0.1
    asked = agree(ect(gap=gap, law=law, metric=half_mse, path=EDM))
    data = agree(ect(gap=gap, law=law, metric=half_mse, floor=0.002, path=EDM))
    assert not np.allclose(asked, data, rtol=1e-3)


def test_weights_are_functions_of_the_levels():
    plain = {"segments": 9, "grid": KarrasPoints(end=0.0)}
    for method in (cm_cd, cm_ct):
        found = play(method(**plain))
        index = found.context().of("agree").integers("index", 9)
        t = jnp.asarray(KarrasPoints(end=0.0)(9, LINEAR))[index]
        snr = ((1.0 - t) / t) ** 2
        one = found.values()["agree"]
        weighted = agree(method(**plain, weight=weights.truncated_snr))
        exact.allclose(weighted, jnp.maximum(snr, 1.0) * one, 1e-5)
    levels = jnp.asarray([0.5, 2.0]), jnp.asarray([0.25, 1.0]), 0.5
    exact.allclose(weights.snr(*levels), [4.0, 0.25], 1e-6)
    exact.allclose(weights.snr_plus_one(*levels), [5.0, 1.25], 1e-6)
    exact.allclose(weights.inverse_gap(*levels), [4.0, 1.0], 1e-6)
    exact.allclose(weights.inverse_output_scale(*levels), [8.0, 4.25], 1e-6)


def test_cm_ct_is_cm_cd_whose_denoiser_knows_the_data():
    mean = jnp.asarray([0.4, -0.2])
    data = {"x0": jnp.broadcast_to(mean, (16, 2))}
    teacher = oracles.network(oracles.Gaussian(mean, jnp.zeros(2)), LINEAR)
    options = {"grid": EvenGrid()}
    distilled = cm_cd(segments=9, solver=Euler(), **options)
    trained = cm_ct(segments=9, target_decay=0.0, **options)
    exact.allclose(
        agree(trained, data=data), agree(distilled, data=data, teacher=teacher), 1e-5
    )
    other = oracles.network(oracles.Gaussian(mean + 1.0, jnp.zeros(2)), LINEAR)
    wrong = agree(distilled, data=data, teacher=other)
    assert not np.allclose(agree(trained, data=data), wrong, rtol=1e-2)


def test_consistency_training_has_the_gradient_of_distillation_in_the_mean():
    """For a student linear in the state, with Euler's step of the exact denoiser."""
    oracle = exact.gaussian()
    x0 = oracle.sample(jax.random.key(0), 40_000)

    def apply(params, x, t, cond=None, s=None, **options):
        return params["gain"] * jnp.exp(-t)[:, None] * x

    student = Network(
        "gain", apply, lambda key: {"gain": jnp.full(2, 0.4)}, LINEAR, "x0"
    )
    nets = {"student": student, "target": student}

    def gradient(method, **more):
        found = play(
            method,
            batch_size=40_000,
            data={"x0": x0, "cond": jnp.zeros(40_000, jnp.int32)},
            same=("student", "target"),
            **nets,
            **more,
        )
        return found.gradients()["student"]["gain"]

    options = {"segments": 4, "grid": EvenGrid(0.8)}
    teacher = oracles.network(oracle, LINEAR)
    distilled = gradient(cm_cd(solver=Euler(), **options), teacher=teacher)
    trained = gradient(cm_ct(target_decay=0.0, **options))
    assert float(jnp.abs(distilled).max()) > 0.05
    np.testing.assert_allclose(trained, distilled, atol=3e-3)


def test_segments_are_those_of_the_papers():
    total, s0, s1 = 1000, 2, 150
    grown, doubled = RootSegments(total, s0, s1), DoublingSegments(total, 10, 1280)
    for k in (0, 1, 10, 500, 999, 1000):
        root = math.sqrt(k / total * ((s1 + 1) ** 2 - s0**2) + s0**2)
        points = math.ceil(root - 1.0) + 1
        assert int(value_at(grown, k)) == points - 1
        length = total // 8
        assert int(value_at(doubled, k)) == min(10 * 2 ** (k // length), 1280)
    decay = SegmentDecay(grown)
    assert float(value_at(decay, 0)) == pytest.approx(0.9**2, rel=1e-6)
    assert float(value_at(decay, total)) == pytest.approx(0.9 ** (2 / 150), rel=1e-6)


def test_segments_are_drawn_by_their_log_normal_mass():
    grid, count, mean, std = KarrasGrid(), 12, -1.1, 2.0
    u = (jnp.arange(20_000) + 0.5) / 20_000
    found = np.asarray(log_normal_segment(u, grid, count, mean, std)).astype(int)
    levels = np.asarray(grid.ratio(jnp.arange(count + 1.0), count + 1.0))
    cdf = np.asarray(jax.scipy.stats.norm.cdf((np.log(levels) - mean) / std))
    mass = (cdf[:-1] - cdf[1:]) / (cdf[0] - cdf[-1])
    assert mass.sum() == pytest.approx(1.0)
    share = np.bincount(found, minlength=count) / found.size
    np.testing.assert_allclose(share, mass, atol=2e-4)


def test_ict_is_a_pseudo_huber_over_the_gap():
    gap = 80.0 - 0.002
    squares = agree(ict(segments=1, metric=sum_squares)) * gap
    width = 0.00054 * math.sqrt(2)
    wanted = (jnp.sqrt(squares + width**2) - width) / gap
    exact.allclose(agree(ict(segments=1)), wanted, 1e-7)


def test_both_passes_of_a_step_see_one_dropout_mask():
    seen = []

    def apply(params, x, t, cond=None, s=None, *, rng=None, **options):
        seen.append(rng)
        noise = 0.0 if rng is None else jax.random.normal(rng, x.shape)
        return params["bias"] + noise

    random = Network(
        "random",
        apply,
        lambda key: {"bias": jnp.zeros(2)},
        LINEAR,
        "x0",
        frozenset({"dropout"}),
    )
    nets = {"student": random, "target": random}
    same = ("student", "target")
    method = ect(gap=0.05, law=LAW)
    assert float(agree(method, same=same, **nets).max()) < 1e-12
    assert len(seen) == 2
    assert all(rng is not None for rng in seen)
    values = agree(lcm(segments=4, guidance=1.0), same=same, **nets)
    assert float(values.min()) < 1e-12


def test_lcm_of_one_step_without_guidance_is_cm_cd():
    options = {"segments": 9, "solver": DDIM(), "metric": half_mse, "guidance": 1.0}
    ours = agree(lcm(target_decay=0.0, **options))
    np.testing.assert_array_equal(ours, agree(cm_cd(grid=EvenGrid(), **options)))


def test_lcm_that_skips_to_the_data_regresses_on_the_denoiser():
    method = lcm(segments=8, skip=8, guidance=2.0, metric=half_mse)
    found = play(method)
    ctx = found.context().of("agree")
    t = 1.0 - ctx.integers("index", 8) / 8
    x_t = LINEAR.noise(found.data["x0"], ctx.normal("eps"), t)
    target = ctx.nets.teacher.guided(found.data, 2.0)(x_t, t)
    clean = ctx.nets.student.denoiser(found.data["cond"])(x_t, t)
    wanted = 0.5 * jnp.mean((clean - target) ** 2, -1)
    exact.allclose(found.values()["agree"], wanted, 1e-5)
    with pytest.raises(ValueError, match=r"skip must lie in 1 \.\. segments = 8"):
        lcm(segments=8, skip=9)


def test_a_range_of_scales_matters_only_to_a_teacher_that_sees_the_condition():
    base = toy.mlp(cases.SHAPE, second_time=True, num_classes=cases.CLASSES)

    def blind(key):
        params = base.init(key)
        return {**params, "label": jax.tree.map(jnp.zeros_like, params["label"])}

    teacher = dataclasses.replace(base, init=blind)
    ranges = ((1.0, 2.0), (6.0, 9.0))
    low, high = (agree(lcm(guidance=r), teacher=teacher) for r in ranges)
    exact.allclose(low, high, 1e-8)
    low, high = (agree(lcm(guidance=r)) for r in ranges)
    assert not np.allclose(low, high, rtol=1e-3)


def test_an_embedded_scale_reaches_student_and_target():
    seen = []
    base = toy.mlp(cases.SHAPE, num_classes=cases.CLASSES)

    def apply(params, x, t, cond=None, s=None, **options):
        seen.append(cond)
        return base.apply(params, x, t, cond["cond"], s, **options)

    told = dataclasses.replace(
        base, apply=apply, capabilities=base.capabilities | {"guidance"}
    )
    method = lcm(guidance=(3.0, 15.0), embed=True)
    found = play(method, student=told, target=told)
    found.values()
    wanted = 3.0 + 12.0 * found.context().of("guidance").uniform("guidance")
    assert len(seen) == 2
    for cond in seen:
        np.testing.assert_array_equal(cond["guidance"], wanted)
        np.testing.assert_array_equal(cond["cond"], found.data["cond"])


def test_denoising_of_the_velocity_is_flow_matching():
    law = Uniform(0.05, 0.95)
    ours = play(denoising(kind="velocity", law=law)).values()["match"]
    np.testing.assert_array_equal(ours, play(flow_matching(law=law)).values()["match"])
    np.testing.assert_array_equal(ours, play(denoising(law=law)).values()["match"])


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "F"])
@pytest.mark.parametrize("path", [LINEAR, paths.vp(), paths.trigflow(0.5)])
def test_denoising_regresses_the_kind_that_data_and_noise_make(kind, path):
    law = Uniform(0.1, 0.9)
    net = toy.mlp(path=path, prediction=kind, num_classes=cases.CLASSES)
    found = play(denoising(kind=kind, law=law), backbone=net)
    ctx = found.context().of("match")
    t, x0 = ctx.times("t", law, path), found.data["x0"]
    eps = ctx.normal("eps", x0)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    sd, scale = path.sigma_d, path.scale(t)[:, None]
    targets = {
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "F": (alpha * sd * eps - sigma * x0 / sd) / scale,
    }
    x_t = path.noise(x0, eps, t)
    out = ctx.nets.student.prediction(found.data["cond"])(x_t, t)
    wanted = 0.5 * jnp.mean((out - targets[kind]) ** 2, -1)
    exact.allclose(found.values()["match"], wanted, 1e-9)


def test_the_min_snr_weight_makes_one_loss_of_every_kind():
    law = Uniform(0.05, 0.95)
    plain, *others = (
        play(denoising(kind=kind, law=law, min_snr=5.0)).values()["match"]
        for kind in ("x0", "eps", "velocity", "v", "F")
    )
    for found in others:
        exact.allclose(found, plain, 1e-9)
    t = play(denoising(law=law)).context().of("match").times("t", law, LINEAR)
    unweighted = play(denoising(kind="x0", law=law)).values()["match"]
    snr = jnp.minimum(((1.0 - t) / t) ** 2, 5.0)
    exact.allclose(plain, snr * unweighted, 1e-9)


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="prediction kind"):
        denoising(kind="epsilon")
