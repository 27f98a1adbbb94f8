"""The fit of a fake score, by path and prediction, against written-out errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import methods, oracles, paths
from distilljax.core.binding import Bound, Network
from distilljax.diffusion.paths import expand
from distilljax.diffusion.predictions import F, recompose
from distilljax.diffusion.times import Point
from distilljax.methods.fits import Fit, MinSNR
from distilljax.methods.matching.sid import SID_FIT_TIMES
from tests import exact
from tests.methods.played import play

pytestmark = pytest.mark.usefixtures("x64")
REAL = oracles.Gaussian(np.asarray([0.7, -0.3]), 0.7)


def network(path, prediction):
    """The exact scores of a Gaussian as a network of a kind."""
    return oracles.network(REAL, path, prediction)


def fitted(path, prediction, at, fit=Fit(), own=None):
    """``(value of the fit, D, x, eps, t, x_t)`` of a method on a path."""
    method = methods.diff_instruct(critic_law=Point(at), fit=fit, path=own)
    nets = {
        role: network(path, prediction) for role in ("student", "teacher", "fake_score")
    }
    found = play(method, phase="fake_score", **nets)
    ctx = found.context()
    on = path if own is None else own
    term, x = ctx.of("fit"), ctx.data["x"]
    t = jnp.full(x.shape[:1], at * on.t_max)
    eps = term.normal("eps", x)
    x_t = on.noise(x, eps, t)
    denoised = ctx.nets.fake_score.denoiser(ctx.cond, path=on)(x_t, t)
    return found.values()["fit"], denoised, x, eps, expand(t, x), x_t


def half(error):
    return 0.5 * jnp.mean(error**2, -1)


@pytest.mark.parametrize("prediction", ["F", "x0"])
@pytest.mark.parametrize("sigma_d", [0.5, 1.0])
def test_edm_networks_are_fitted_with_the_weight_of_edm(prediction, sigma_d):
    path = paths.edm(sigma_d=sigma_d)
    for at in (0.001, 0.02, 1.0):
        value, denoised, x, _, t, _ = fitted(path, prediction, at)
        weight = 1 / t**2 + 1 / sigma_d**2
        exact.allclose(value, half(jnp.sqrt(weight) * (denoised - x)), 1e-6)


@pytest.mark.parametrize("path", [paths.vp(), paths.vp_scaled_linear()])
def test_noise_predictions_are_fitted_plainly(path):
    for at in (0.05, 0.9):
        value, denoised, _, eps, t, x_t = fitted(path, "eps", at)
        found = (x_t - path.alpha(t) * denoised) / path.sigma(t)
        exact.allclose(value, half(found - eps), 1e-6)


@pytest.mark.parametrize(
    ("path", "prediction", "own"),
    [
        (paths.linear(), "velocity", None),
        (paths.trigflow(0.5), "F", None),
        (paths.linear(), "velocity", paths.trigflow()),
        (paths.linear(), "F", paths.vp()),
    ],
)
def test_velocity_networks_and_other_paths_are_fitted_on_the_velocity(
    path, prediction, own
):
    on = path if own is None else own
    value, denoised, x, eps, t, x_t = fitted(path, prediction, 0.4, own=own)
    noise = (x_t - on.alpha(t) * denoised) / on.sigma(t)
    gap = on.velocity(denoised, noise, t) - on.velocity(x, eps, t)
    exact.allclose(value, half(gap), 1e-5)


def test_prediction_weight_and_path_can_be_chosen():
    path = paths.vp()
    fit = Fit("x0", weight=MinSNR(5.0))
    for at in (0.05, 0.9):
        value, denoised, x, _, t, _ = fitted(path, "eps", at, fit)
        snr = (path.alpha(t) / path.sigma(t)) ** 2
        error = half(jnp.sqrt(jnp.minimum(snr, 5.0)) * (denoised - x))
        exact.allclose(value, error, 1e-6)
    elsewhere = fitted(path, "eps", 0.01, Fit(path=paths.edm(sigma_d=1.0)))[0]
    assert elsewhere.shape == (16,)
    with pytest.raises(ValueError, match="prediction kind"):
        Fit("noise")


def test_the_weight_of_edm_holds_at_the_size_of_images():
    """CIFAR's 3072 elements: the mean over elements is that of one, at every level."""
    path, shape = paths.edm(), (32, 32, 3)

    def apply(params, x, t, cond=None, s=None, **options):
        return jnp.zeros_like(x)

    zero = Network("zero", apply, lambda key: {}, path, "F")
    x = jax.random.normal(jax.random.key(0), (4, *shape)) * 0.5
    for sigma in (0.002, 0.5, 80.0):
        t = jnp.full(4, sigma)
        eps = jax.random.normal(jax.random.key(1), x.shape)
        x_t = path.noise(x, eps, t)
        net = Bound("fake_score", zero, {})
        kind = Fit().kind(net, path)
        assert kind is F
        error = net.prediction(kind=kind)(x_t, t) - recompose(path, kind, x, eps, t)
        denoised = net.denoiser()(x_t, t)
        weight = 1 / sigma**2 + 1 / 0.25
        wanted = weight * jnp.mean((denoised - x) ** 2, (1, 2, 3))
        exact.allclose(jnp.mean(error**2, (1, 2, 3)), wanted, 1e-6)


def test_a_guided_fit_and_a_guided_fake_score_are_those_of_sid_lsg():
    """Long and short guidance: every prediction of the fake score is extrapolated."""
    method = methods.sid(
        alpha=1.0,
        guidance=2.0,
        fake_guidance=3.0,
        fit=Fit(guidance=1.5),
        law=Point(0.4),
    )
    assert "null" in method.roles["fake_score"].needs

    def at_scale(ctx, role, scale, x_t, t):
        net, null = ctx.nets[role], ctx.nets[role].null_condition(ctx.data)
        label = net.denoiser(ctx.cond)(x_t, t)
        return (1 - scale) * net.denoiser(null)(x_t, t) + scale * label

    found = play(method)
    ctx = found.context()
    term, x = ctx.of("fisher"), ctx.data["x"]
    t = jnp.full(16, 0.4)
    x_t = ctx.nets.student.path.noise(x, term.normal("eps", x), t)
    real = at_scale(ctx, "teacher", 2.0, x_t, t)
    fake = at_scale(ctx, "fake_score", 3.0, x_t, t)
    size = jnp.maximum(jnp.mean(jnp.abs(x - real), -1), 0.3)
    # (D_real - D_fake)(D_fake - x), the release's form at alpha = 1.
    wanted = jnp.mean((real - fake) * (fake - x), -1) / size
    exact.allclose(found.values()["fisher"], wanted, 1e-6)

    fitting = play(method, phase="fake_score")
    ctx = fitting.context()
    term, x = ctx.of("fit"), ctx.data["x"]
    path = ctx.nets.student.path
    t, eps = term.times("t", SID_FIT_TIMES), term.normal("eps", x)
    x_t = path.noise(x, eps, t)
    denoised = at_scale(ctx, "fake_score", 1.5, x_t, t)
    t = expand(t, x)
    noise = (x_t - path.alpha(t) * denoised) / path.sigma(t)
    wanted = half(path.velocity(denoised - x, noise - eps, t))
    exact.allclose(fitting.values()["fit"], wanted, 1e-5)
