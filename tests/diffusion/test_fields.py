"""Guidance, conversion and switches of fields."""

import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import paths
from distilljax.diffusion.fields import converted, guide, guided, switch_by_time, viewed
from distilljax.diffusion.oracles import prediction
from tests.exact import allclose, gaussian, normal

pytestmark = pytest.mark.usefixtures("x64")


def forbidden(x, t):
    raise AssertionError("evaluated although guidance is off")


def test_guidance_has_one_convention():
    cond, null = normal(0, 4, 3), normal(1, 4, 3)
    allclose(guide(cond, null, 1.0), cond)
    allclose(guide(cond, null, 0.0), null)
    allclose(guide(cond, null, 4.5), null + 4.5 * (cond - null))
    # The other convention, cond + w' (cond - null), has w = 1 + w'.
    allclose(guide(cond, null, 1 + 3.5), cond + 3.5 * (cond - null))


def test_guidance_scales_may_differ_by_sample():
    cond, null, w = normal(0, 4, 3), normal(1, 4, 3), jnp.array([0.0, 1.0, 2.0, 7.0])
    allclose(guide(cond, null, w), null + w[:, None] * (cond - null))


def test_rescale_restores_the_spread_of_the_conditional_prediction():
    cond, null = normal(0, 4, 50), normal(1, 4, 50)
    plain = guide(cond, null, 5.0)
    full = guide(cond, null, 5.0, rescale=1.0)
    allclose(full.std(axis=1), cond.std(axis=1))
    allclose(guide(cond, null, 5.0, rescale=0.7), 0.7 * full + 0.3 * plain)


def test_max_norm_caps_what_guidance_adds():
    cond, null = normal(0, 4, 3), normal(1, 4, 3)
    added = guide(cond, null, 3.0, max_norm=0.1) - cond
    allclose(jnp.linalg.norm(added, axis=1), jnp.full(4, 2.0 * 0.1))
    allclose(guide(cond, null, 3.0, max_norm=1e6), guide(cond, null, 3.0))


def test_guidance_off_costs_nothing():
    def cond(x, t):
        return x

    assert guided(cond, forbidden, 1) is cond
    assert guided(cond, forbidden, 1.0) is cond


def test_guidance_in_an_interval():
    field = guided(lambda x, t: x, lambda x, t: 0 * x, 3.0, interval=(0.2, 0.6))
    x, t = normal(0, 4, 3), jnp.array([0.1, 0.2, 0.5, 0.7])
    allclose(field(x, t), x * jnp.array([1.0, 3.0, 3.0, 1.0])[:, None])
    allclose(field(x, 0.5), 3.0 * x)
    with pytest.raises(ValueError, match="low <= high"):
        guided(lambda x, t: x, forbidden, 3.0, interval=(0.6, 0.2))


def test_guidance_does_not_depend_on_the_kind():
    path, t, x = paths.trigflow(0.5), jnp.array([0.3, 1.0]), normal(0, 2, 2)
    strong, weak = gaussian(), gaussian()._replace(mean=jnp.zeros(2))

    def in_kind(kind):
        fields = [prediction(oracle, path, kind) for oracle in (strong, weak)]
        return converted(guided(*fields, 2.5), path, kind, "x0")(x, t)

    for kind in ("eps", "score", "velocity", "v", "F"):
        allclose(in_kind(kind), in_kind("x0"), 1e-11)


def test_experts_take_turns_by_time():
    field = switch_by_time(lambda x, t: 0 * x, lambda x, t: 0 * x + 1.0, 0.5)
    out = field(jnp.zeros((3, 2)), jnp.array([0.2, 0.5, 0.9]))
    np.testing.assert_array_equal(out[:, 0], [0.0, 1.0, 1.0])


def test_conversion_to_the_same_kind_is_the_field_itself():
    path = paths.linear()
    field = prediction(gaussian(), path, "velocity")
    assert converted(field, path, "velocity", "velocity") is field
    assert viewed(field, path, "velocity", on=path) is field
    x, t = normal(0, 3, 2), jnp.array([0.2, 0.5, 0.9])
    wanted = gaussian().denoised(path)(x, t)
    allclose(converted(field, path, "velocity", "x0")(x, t), wanted)
    seen = viewed(field, path, "velocity", on=path, as_kind="x0")
    allclose(seen(x, t), wanted)


def test_conversion_on_a_bridge_takes_the_endpoint():
    path, y = paths.bridge_linear(0.4), normal(2, 3, 2)
    clean, eps, t = normal(0, 3, 2), normal(1, 3, 2), jnp.array([0.2, 0.5, 0.9])
    x = path.noise(clean, eps, t, y)
    field = converted(lambda x, t: clean, path, "x0", "velocity", y)
    allclose(field(x, t), path.velocity(clean, eps, t, y), 1e-11)
