"""Affine flow maps: their coefficients and published special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import paths
from distilljax.core.binding import flow_output
from distilljax.diffusion.flow_maps import AffineFlowMap, coefficients
from distilljax.diffusion.predictions import KINDS, X0, F
from tests.exact import PATHS, allclose, gaussian, inner_times, normal

pytestmark = pytest.mark.usefixtures("x64")


def constant(value):
    return lambda x, t, s: jnp.broadcast_to(value, x.shape)


@pytest.fixture(params=["linear_half", "vp", "edm", "trigflow_half"])
def path(request):
    return PATHS[request.param]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_map_from_a_time_to_itself_is_the_identity(path, kind):
    t = inner_times(path)
    a, b = coefficients(path, kind, t, t)
    allclose(a, jnp.ones(5), 1e-10)
    allclose(b, jnp.zeros(5), 1e-10)


def test_linear_is_a_straight_step():
    t, s = jnp.array([1.0, 0.7, 0.2]), jnp.array([0.0, 0.3, 0.2])
    a, b = coefficients(paths.linear(), "velocity", t, s)
    allclose(a, jnp.ones(3))
    allclose(b, s - t)


def test_trigflow_is_a_rotation():
    t, s = jnp.array([np.pi / 2, 1.1, 0.4]), jnp.array([0.0, 0.3, 0.0])
    path = paths.trigflow(0.5)
    a, b = coefficients(path, "velocity", t, s)
    allclose(a, jnp.cos(t - s))
    allclose(b, -jnp.sin(t - s))
    a, b = coefficients(path, "F", t, s)
    allclose(b, -0.5 * jnp.sin(t - s))


def test_a_clean_prediction_is_a_jump(path):
    t, s = inner_times(path)[1:], inner_times(path)[:-1]
    x, clean = normal(0, 4, 2), normal(1, 4, 2)
    f = AffineFlowMap(constant(clean), path, X0)
    allclose(f(x, t, s), path.jump(clean, x, t, s), 1e-11)
    allclose(f(x, t, 0.0), clean, 1e-11)


def test_the_exact_output_gives_the_exact_map(path):
    oracle, x = gaussian(), normal(0, 4, 2)
    t, s = inner_times(path)[1:], inner_times(path)[:-1]
    for end in (s, 0.0, 0.999 * t):
        wanted = oracle.flow_map(path)(x, t, end)
        allclose(oracle.affine_map(path, flow_output(path))(x, t, end), wanted, 1e-11)


def test_a_consistency_model_of_2023_is_the_edm_map_with_a_boundary():
    low, sd = 0.002, 0.5
    path = paths.edm(sigma_min=low, sigma_d=sd)
    x, raw = normal(0, 4, 2), normal(1, 4, 2)
    f = AffineFlowMap(constant(-raw), path, F, boundary=low)
    t = jnp.array([low, 0.1, 3.0, 80.0])
    skip = sd**2 / ((t - low) ** 2 + sd**2)
    out = sd * (t - low) / jnp.sqrt(t**2 + sd**2)
    wanted = skip[:, None] * x + out[:, None] * raw
    allclose(f(x, t, jnp.zeros(4)), wanted)
    np.testing.assert_array_equal(f(x, low, 0.0), x)


def test_times_per_frame_act_per_frame():
    path = paths.trigflow(0.5)
    x, out = normal(0, 2, 3, 4), normal(1, 2, 3, 4)
    t, s = jnp.linspace(0.5, 1.5, 6).reshape(2, 3), jnp.linspace(0.0, 0.4, 3)[None]
    whole = AffineFlowMap(constant(out), path)(x, t, s)
    for i in range(3):
        part = AffineFlowMap(constant(out[:, i]), path)(x[:, i], t[:, i], s[0, i])
        allclose(whole[:, i], part)


def test_the_scale_of_tangents_is_one_for_a_velocity_and_cos_on_trigflow():
    t = jnp.array([0.1, 0.7, 1.3])

    def scale(path, kind="velocity"):
        return AffineFlowMap(constant(0.0), path, KINDS[kind]).tangent_scale(t, 0 * t)

    allclose(scale(paths.linear()), jnp.ones(3))
    allclose(scale(paths.trigflow(0.5)), jnp.cos(t))
    allclose(scale(paths.trigflow(0.5), "F"), jnp.cos(t) / 0.5)


@pytest.mark.parametrize("name", ["edm", "vp", "linear_half"])
def test_the_scale_of_an_f_output_is_that_of_trigflow_on_every_path(name):
    path = PATHS[name]
    t = inner_times(path)
    s = 0.5 * t

    def angle(u):
        return jnp.arctan(path.sigma(u) / (path.sigma_d * path.alpha(u)))

    here, rate = jax.jvp(angle, (t,), (jnp.ones_like(t),))
    scale = AffineFlowMap(constant(0.0), path, F).tangent_scale(t, s)
    allclose(scale, jnp.cos(here) / (path.scale(s) * rate), 1e-10)
    # With it the direction on F is cos(t) cos(t - s) long at any end time.
    _, slope = jax.jvp(
        lambda u: coefficients(path, F, u, s)[1], (t,), (jnp.ones_like(t),)
    )
    wanted = -jnp.cos(here) * jnp.cos(here - angle(s))
    allclose(scale * slope, wanted, 1e-9)


def test_the_regular_output_of_a_path():
    assert flow_output(paths.linear(0.5)).name == "velocity"
    assert flow_output(paths.trigflow(0.5)).name == "velocity"
    assert flow_output(paths.edm()).name == "F"
    assert flow_output(paths.vp()).name == "F"
