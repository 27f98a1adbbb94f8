"""Distribution matching: closed forms on Gaussians and the sign rules of gaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import losses, paths
from distilljax.diffusion.oracles import Gaussian
from distilljax.losses import (
    fisher,
    gap_from_eps,
    learned_weight,
    score_gap,
    split_error,
)
from distilljax.losses.corrections import regress
from tests.exact import PATHS, allclose, inner_times, normal

pytestmark = pytest.mark.usefixtures("x64")
NAMES = ("linear", "vp", "edm", "trigflow_half")
SHIFT, MEAN, VARIANCE = 0.9, 0.2, 0.36


@pytest.fixture(params=NAMES)
def path(request):
    return PATHS[request.param]


def pair(path):
    """Denoisers of the teacher ``N(m, v)`` and of the student ``N(a, v)``."""
    std = jnp.sqrt(jnp.array(VARIANCE))
    real = Gaussian(jnp.array([MEAN]), std).denoised(path)
    return real, Gaussian(jnp.array([SHIFT]), std).denoised(path)


def test_the_gap_of_two_gaussians(path):
    t = inner_times(path)
    alpha, sigma = path.alpha(t), path.sigma(t)
    x = normal(0, 5, 1)
    x_t = path.noise(x, normal(1, 5, 1), t)
    real, fake = pair(path)
    c = score_gap(x, real(x_t, t), fake(x_t, t))
    total = alpha**2 * VARIANCE + sigma**2
    gap = (SHIFT - MEAN) * sigma**2 / total
    # A direction is minus the gap of the literature.
    allclose(c.direction, -gap[:, None])
    # Times alpha^2 / sigma^2 the gap is the slope of the divergence in the mean.
    slope = jax.vmap(
        jax.grad(lambda a, al, tot: (al * (a - MEAN)) ** 2 / (2 * tot)), (None, 0, 0)
    )(SHIFT, alpha, total)
    allclose(alpha**2 / sigma**2 * gap, slope, 1e-11)


def test_the_gap_vanishes_when_the_student_is_the_teacher(path):
    t, x = inner_times(path), normal(0, 5, 1)
    real, _ = pair(path)
    x_t = path.noise(x, normal(1, 5, 1), t)
    c = score_gap(x, real(x_t, t), real(x_t, t))
    np.testing.assert_array_equal(c.direction, 0.0)


def test_descending_the_gap_moves_the_student_to_the_teacher():
    path, (real, fake) = paths.linear(), pair(paths.linear())
    t, x = jnp.full(5, 0.5), SHIFT + 0.6 * normal(0, 5, 1)
    x_t = path.noise(x, normal(1, 5, 1), t)

    def loss(x):
        return regress(score_gap(x, real(x_t, t), fake(x_t, t))).sum()

    slope = jax.grad(loss)(x)
    assert np.all(slope > 0.0)
    allclose(slope, fake(x_t, t) - real(x_t, t))


def test_only_the_sample_gets_a_gradient():
    def loss(x, real, fake):
        return regress(score_gap(x, real, fake)).sum()

    x, real, fake = (normal(i, 4, 3) for i in range(3))
    slopes = jax.grad(loss, argnums=(0, 1, 2))(x, real, fake)
    allclose(slopes[0], (fake - real) / 3)
    np.testing.assert_array_equal(slopes[1], 0.0)
    np.testing.assert_array_equal(slopes[2], 0.0)


def test_at_the_same_point_the_roles_of_eps_swap(path):
    t, x_t = inner_times(path), normal(0, 5, 2)
    te = t[:, None]
    real, fake = normal(1, 5, 2), normal(2, 5, 2)

    def eps(denoised):
        return (x_t - path.alpha(te) * denoised) / path.sigma(te)

    found = gap_from_eps(eps(real), eps(fake), path, t)
    allclose(found, real - fake, 1e-11)


def test_score_distillation_pulls_toward_the_teacher():
    """SDS: the network is a, the drawn noise b, at one point."""
    path, (real, _) = paths.vp(), pair(paths.vp())
    t, x = jnp.array([0.2, 0.4, 0.6]), jnp.full((3, 1), 3.0)
    eps = normal(1, 3, 1)
    x_t = path.noise(x, eps, t)
    te = t[:, None]
    predicted = (x_t - path.alpha(te) * real(x_t, t)) / path.sigma(te)
    allclose(gap_from_eps(predicted, eps, path, t), real(x_t, t) - x, 1e-10)
    assert np.all(gap_from_eps(predicted, eps, path, t) < 0.0)


def test_at_different_points_two_parts_make_the_error(path):
    t = inner_times(path)
    te = t[:, None]
    alpha, sigma = path.alpha(te), path.sigma(te)
    real, _ = pair(path)
    x_hat, x_ref, noise = normal(0, 5, 1), normal(1, 5, 1), normal(2, 5, 1)
    a, b = path.noise(x_hat, noise, t), path.noise(x_ref, noise, t)

    def eps(x_t):
        return (x_t - alpha * real(x_t, t)) / sigma

    coarse, fine = split_error(real(a, t), real(b, t), eps(a), eps(b), path, t)
    error = x_hat - x_ref
    allclose(coarse + fine, error, 1e-10)
    share = alpha**2 * VARIANCE / (sigma**2 + alpha**2 * VARIANCE)
    allclose(coarse, share * error, 1e-10)
    # Minus either part leads to the reference: no swap of roles.
    assert np.all(coarse * error >= 0.0)
    assert np.all(fine * error >= 0.0)
    none = split_error(real(b, t), real(b, t), eps(b), eps(b), path, t)
    assert all(np.all(part == 0.0) for part in none)


# Gauss-Hermite nodes are exact for the polynomials that Gaussian denoisers make.
NODES, MASS = np.polynomial.hermite_e.hermegauss(8)
TEACHER = (0.4, 0.7)
STUDENT = {"mean": 0.9, "std": 0.5}
TIME = 0.35


def student_sample(params, z):
    return params["mean"] + params["std"] * z


def expected_fisher(params, alpha):
    """``E fisher`` over student and noise with the exact fake score, in score units."""
    path, t = paths.vp(), TIME
    a, s = path.alpha(jnp.asarray(t)), path.sigma(jnp.asarray(t))
    z, eps = (jnp.asarray(g.ravel()) for g in np.meshgrid(NODES, NODES))
    mass = jnp.asarray(np.outer(MASS, MASS).ravel())
    x = student_sample(params, z)[:, None]
    x_t = path.noise(x, eps[:, None], t)
    real = Gaussian(*map(jnp.asarray, TEACHER)).denoised(path)(x_t, t)
    frozen = jax.lax.stop_gradient(params)
    fake = Gaussian(frozen["mean"], frozen["std"]).denoised(path)(x_t, t)
    # A large floor turns the normaliser into a constant.
    values = 1e6 * fisher(x, real, fake, alpha=alpha, floor=1e6)
    return 2 * a**2 / s**4 * jnp.sum(mass * values) / mass.sum()


def score_difference(params, x_t):
    """Teacher's minus student's score at ``x_t``."""
    path = paths.vp()
    real = Gaussian(*map(jnp.asarray, TEACHER)).score(path)(x_t, TIME)
    return real - Gaussian(params["mean"], params["std"]).score(path)(x_t, TIME)


def divergence(sampled, scored):
    """``E_q |s_p - s_q|^2`` with the law and the score of q apart."""
    path = paths.vp()
    marginal = Gaussian(sampled["mean"], sampled["std"]).noised(path, TIME)
    x_t = (marginal.mean + marginal.std * jnp.asarray(NODES))[:, None]
    mass = jnp.asarray(MASS)
    squared = score_difference(scored, x_t)[:, 0] ** 2
    return jnp.sum(mass * squared) / mass.sum()


def test_half_alpha_has_the_gradient_of_the_fisher_divergence():
    params = jax.tree.map(jnp.asarray, STUDENT)
    found, slopes = jax.jit(jax.value_and_grad(expected_fisher))(params, 0.5)
    wanted, exact = jax.jit(jax.value_and_grad(lambda p: divergence(p, p)))(params)
    allclose(found, wanted, 1e-9)
    for name in params:
        allclose(slopes[name], exact[name], 1e-9)
        assert abs(float(exact[name])) > 0.01


def test_alpha_one_is_score_implicit_matching():
    """The gradient of the divergence with the law of the samples frozen."""
    params = jax.tree.map(jnp.asarray, STUDENT)
    slopes = jax.jit(jax.grad(expected_fisher))(params, 1.0)
    exact = jax.jit(jax.grad(divergence, argnums=1))(params, params)
    for name in params:
        allclose(slopes[name], exact[name], 1e-9)


def test_fisher_is_the_published_loss():
    x, real, fake = (normal(i, 4, 3) for i in range(3))
    norm = jnp.mean(jnp.abs(x - real), axis=1)
    gap = real - fake
    wanted = jnp.mean(gap * (real - x) - 1.2 * gap**2, axis=1) / norm
    allclose(fisher(x, real, fake), wanted)
    allclose(fisher(x, real, real), jnp.zeros(4))


def test_fisher_differentiates_both_networks_but_not_the_normaliser():
    x, real, fake = (normal(i, 4, 3) for i in range(3))
    norm = jnp.mean(jnp.abs(x - real), axis=1, keepdims=True)
    slopes = jax.grad(lambda *a: fisher(*a).sum(), argnums=(0, 1, 2))(x, real, fake)
    gap = real - fake
    allclose(slopes[0], -gap / (3 * norm))
    allclose(slopes[1], ((real - x) + gap - 2.4 * gap) / (3 * norm))
    allclose(slopes[2], (-(real - x) + 2.4 * gap) / (3 * norm))


def test_a_learned_weight_settles_at_the_inverse_loss():
    values, w = jnp.array([0.5, 2.0]), -jnp.log(jnp.array([0.5, 2.0]))
    slope = jax.grad(lambda w: learned_weight(values, w).sum())(w)
    allclose(slope, jnp.zeros(2), 1e-6)
    allclose(learned_weight(values, w), 1.0 - w, 1e-6)
    pull = jax.grad(lambda v: learned_weight(v, w).sum())(values)
    allclose(pull, jnp.exp(w), 1e-6)


def test_a_learned_weight_takes_the_prior_of_scm_out_at_the_size_of_images():
    size, sigma = 3072, jnp.array([0.05, 1.0, 5.0])
    values = 1.0 / (2.0 * size * sigma)  # of normalised tangents, with the prior
    w = jnp.log(2.0 * size * sigma)
    assert float(w[1]) == pytest.approx(8.72, abs=0.01)
    slope = jax.grad(lambda w: learned_weight(values, w).sum())(w)
    allclose(slope, jnp.zeros(3), 1e-5)
    pull = jax.grad(lambda v: learned_weight(v / sigma, w).sum())(values * sigma)
    allclose(pull, 2.0 * size * jnp.ones(3), 1e-2)


def test_a_learned_weight_with_a_cap_cannot_run_away():
    w = jnp.array([-9.0, 9.0])
    found, slope = jax.value_and_grad(
        lambda w: learned_weight(jnp.ones(2), w, cap=5.0).sum()
    )(w)
    allclose(found, np.exp(-5.0) + 5.0 + np.exp(5.0) - 5.0, 1e-6)
    np.testing.assert_array_equal(slope, 0.0)


def test_values_keep_the_batch_axis():
    x = normal(0, 4, 3, 2)
    assert losses.fisher(x, x + 1.0, x - 1.0).shape == (4,)
    assert regress(score_gap(x, x + 1.0, x - 1.0, jnp.ones((4, 3)))).shape == (4, 3)
