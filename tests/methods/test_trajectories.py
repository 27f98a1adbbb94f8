"""Progressive distillation and reflow: formulas, points of rest, rounds."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import oracles, paths
from distilljax.core.method import batches
from distilljax.diffusion.predictions import recompose
from distilljax.diffusion.solvers import Euler
from distilljax.diffusion.times import Point, Uniform
from distilljax.methods import progressive, reflow
from distilljax.training.config import TrainConfig
from distilljax.training.cycle import build_cycle
from distilljax.training.roles import make_setup
from distilljax.training.state import create_frozen, create_state
from tests import exact, toy
from tests.methods import cases
from tests.methods.played import ExactStep, play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()


def bound(found, role):
    return found.context().nets[role]


def half_mean_square(x):
    return 0.5 * jnp.mean(x**2, -1)


def step_of(found, count, path):
    """What `progressive` draws: ``(x_t, t, m, s)``."""
    ctx = found.context().of("halve")
    t = path.t_max * (1.0 - ctx.integers("index", count) / count)
    x_t = path.noise(found.data["x0"], ctx.normal("eps"), t)
    return x_t, t, t - 0.5 * path.t_max / count, t - path.t_max / count


@pytest.mark.parametrize("truncated", [True, False])
def test_the_progressive_target_is_the_mean_of_two_velocities(truncated):
    found = play(progressive(steps=(4,), truncated=truncated))
    x_t, t, m, _ = step_of(found, 4, LINEAR)
    cond, teacher = found.data["cond"], bound(found, "teacher")
    first = teacher.apply(x_t, t, cond)
    second = teacher.apply(x_t - first / 8.0, m, cond)
    u = bound(found, "student").apply(x_t, t, cond)
    weight = jnp.maximum(t**2, (1.0 - t) ** 2) if truncated else 1.0
    wanted = weight * half_mean_square(u - 0.5 * (first + second))
    exact.allclose(found.values()["halve"], wanted, 1e-10)


def test_the_progressive_loss_on_vp_is_that_of_the_paper():
    """``x_tgt = (z_s - r z_t) / (alpha_s - r alpha_t)``, the larger of two errors."""
    path = paths.vp_cosine()
    net = toy.mlp(path=path, prediction="v", num_classes=3)
    found = play(progressive(steps=(4,)), backbone=net)
    z_t, t, m, s = (jnp.asarray(v) for v in step_of(found, 4, path))
    cond = found.data["cond"]

    def ddim(net, z, t, s):
        x = net.denoiser(cond)(z, t)
        eps = (z - path.alpha(t)[:, None] * x) / path.sigma(t)[:, None]
        return path.alpha(s)[:, None] * x + path.sigma(s)[:, None] * eps

    teacher, student = bound(found, "teacher"), bound(found, "student")
    z_s = ddim(teacher, ddim(teacher, z_t, t, m), m, s)
    ratio = (path.sigma(s) / path.sigma(t))[:, None]
    alpha_t, alpha_s = path.alpha(t)[:, None], path.alpha(s)[:, None]
    x_target = (z_s - ratio * z_t) / (alpha_s - ratio * alpha_t)
    error = student.denoiser(cond)(z_t, t) - x_target
    eps_error = alpha_t / path.sigma(t)[:, None] * error
    wanted = jnp.maximum(half_mean_square(error), half_mean_square(eps_error))
    exact.allclose(found.values()["halve"], wanted, 1e-5)


def test_progressive_rests_on_a_constant_denoiser():
    point = oracles.Gaussian(jnp.asarray([0.4, -0.2]), jnp.zeros(2))
    other = oracles.Gaussian(jnp.asarray([0.4, 0.1]), jnp.zeros(2))
    method = progressive(steps=(2, 1))
    teacher, wrong = (oracles.network(o, LINEAR) for o in (point, other))
    still = play(method, student=teacher, teacher=teacher).values()["halve"]
    assert float(still.max()) < 1e-12
    off = play(method, student=wrong, teacher=teacher).values()["halve"]
    assert float(off.min()) > 1e-4


def test_only_the_first_teacher_is_guided():
    plain, guided = (
        progressive(steps=(2, 1), round_cycles=5, guidance=w) for w in (1.0, 3.0)
    )
    assert [len(guided.phases_at(i)) for i in (0, 4, 5)] == [1, 1, 1]
    assert guided.phases_at(4) is not guided.phases_at(5)
    for step, same in ((0, False), (5, True)):
        a, b = (play(m, step=step).values()["halve"] for m in (plain, guided))
        assert np.allclose(a, b, rtol=1e-6) == same


def test_steps_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match=r"halve from round to round.*got \(8, 3\)"):
        progressive(steps=(8, 3))
    with pytest.raises(ValueError, match="halve from round to round"):
        progressive(steps=())


def test_the_student_is_the_teacher_of_the_next_round_but_not_after_the_last():
    method, nets = progressive(steps=(2, 1), round_cycles=3), cases.networks()
    config = TrainConfig.of(
        {"cycles": 9, "batch_size": 8, "default": {"lr": 1e-2}}, roles=method.roles
    )
    setup = make_setup(method, nets, config, cases.SHAPE)
    given = cases.params(nets, method)
    state, frozen = create_state(setup, given), create_frozen(setup, given)
    seen = []
    for i in range(9):
        phases = method.phases_at(i)
        data = cases.batch(batches(phases), 8, seed=i)
        state, _ = build_cycle(setup, phases)(state, frozen, data)
        weights = (state.params[r]["out"]["w"] for r in ("teacher", "student"))
        seen.append([np.array(w) for w in weights])
    start = np.asarray(given["teacher"]["out"]["w"])
    for i, (teacher, student) in enumerate(seen):
        np.testing.assert_array_equal(teacher, start if i < 2 else seen[2][1])
        assert not np.array_equal(student, start)


def test_reflow_matches_the_pairs_of_the_teacher():
    found = play(reflow(substeps=3, solver=Euler()))
    cond, teacher = found.data["cond"], bound(found, "teacher")
    z = x = found.context().data["pair"]["states"][0]
    for k in range(3):
        x = x - teacher.apply(x, jnp.full(16, 1.0 - k / 3.0), cond) / 3.0
    t = found.context().of("straighten").times("t", Uniform(), LINEAR)
    v = bound(found, "student").apply(LINEAR.noise(x, z, t), t, cond)
    wanted = half_mean_square(v - (z - x))
    exact.allclose(found.values()["straighten"], wanted, 1e-5)


def test_reflow_takes_pairs_from_the_batch():
    drawn = play(reflow())
    pair = drawn.context().data["pair"]
    data = {"x0": pair["end"], "eps": pair["states"][0]}
    method = reflow(online=False)
    assert method.batch == {"x0", "eps"}
    assert "teacher" not in method.roles
    given = play(method, data=data)
    exact.allclose(given.values()["straighten"], drawn.values()["straighten"], 1e-12)


def test_reflow_at_pure_noise_is_the_distillation_to_one_step():
    velocity, endpoint = (
        play(reflow(law=Point(1.0), endpoint=on)).values()["straighten"]
        for on in (False, True)
    )
    exact.allclose(velocity, endpoint, 1e-12)


@pytest.mark.parametrize("path", [LINEAR, paths.trigflow(0.5)])
def test_the_exact_pairs_of_a_gaussian_have_a_velocity_of_their_own(path):
    """``x = m + c z``: the state tells the noise, so that nothing is left."""
    oracle, sd = exact.gaussian(), path.sigma_d

    def apply(params, x, t, cond=None, s=None, **options):
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        noise = (x * sd - alpha * oracle.mean) / (alpha * oracle.std + sigma)
        clean = oracle.mean + oracle.std * noise
        return recompose(path, "velocity", clean, noise, t) / sd

    teacher = oracles.network(oracle, path)
    straight = dataclasses.replace(teacher, apply=apply)
    method = reflow(substeps=1, solver=ExactStep(), path=path)
    rest = play(method, student=straight, teacher=teacher).values()["straighten"]
    assert float(rest.max()) < 1e-12
    curved = play(method, student=teacher, teacher=teacher).values()["straighten"]
    assert float(curved.max()) > 1e-3
