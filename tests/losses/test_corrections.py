"""The correction and what `regress` makes of it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import metrics
from distilljax.losses.corrections import (
    Correction,
    correct,
    from_value,
    regress,
    toward,
)
from tests.exact import allclose, normal

pytestmark = pytest.mark.usefixtures("x64")


def gradient(output, direction, weight=None, metric=metrics.half_mse):
    def loss(out):
        return regress(correct(out, direction, weight), metric).sum()

    return jax.grad(loss)(output)


def test_the_gradient_is_minus_weight_times_direction_over_size():
    out, direction, weight = normal(0, 4, 3, 2), normal(1, 4, 3, 2), normal(2, 4) ** 2
    wanted = -weight[:, None, None] * direction / 6
    allclose(gradient(out, direction, weight), wanted)
    allclose(gradient(out, direction), -direction / 6)


def test_values_have_the_axes_of_the_weight():
    out, direction = normal(0, 4, 3, 2), normal(1, 4, 3, 2)
    values = regress(correct(out, direction))
    allclose(values, 0.5 * jnp.mean(direction**2, axis=(1, 2)))
    weight = normal(2, 4, 3) ** 2
    values = regress(correct(out, direction, weight))
    allclose(values, weight * 0.5 * jnp.mean(direction**2, axis=2))
    allclose(gradient(out, direction, weight), -weight[:, :, None] * direction / 2)


def test_weights_may_differ_by_element():
    out, direction, weight = normal(0, 4, 3), normal(1, 4, 3), normal(2, 4, 3) ** 2
    values = regress(correct(out, direction, weight))
    allclose(values, jnp.mean(0.5 * weight * direction**2, axis=1))
    allclose(gradient(out, direction, weight), -weight * direction / 3)
    with pytest.raises(ValueError, match="one value per sample"):
        regress(correct(out, direction, weight), metrics.sum_squares)


def test_a_weight_may_have_axes_of_length_one():
    out, direction, weight = normal(0, 4, 3), normal(1, 4, 3), normal(2, 4, 1) ** 2
    values = regress(correct(out, direction, weight))
    allclose(values, jnp.mean(0.5 * weight * direction**2, axis=1))


def test_the_residual_form_keeps_directions_that_the_target_form_loses():
    out = jnp.full((64, 16), 3.0, jnp.bfloat16)
    direction = (1e-3 * normal(0, 64, 16)).astype(jnp.bfloat16)
    wanted = -direction.astype(jnp.float32) / 16

    def target_form(x):
        target = jax.lax.stop_gradient(x + direction)
        return (0.5 * jnp.mean((target - x).astype(jnp.float32) ** 2, axis=1)).sum()

    def wrong(found):
        error = np.abs(np.asarray(found, np.float32) - wanted)
        return np.mean(error > 0.5 * np.abs(wanted))

    assert wrong(gradient(out, direction)) == 0.0
    assert wrong(jax.grad(target_form)(out)) > 0.9


def test_the_weight_and_the_direction_are_constants():
    out, direction = normal(0, 4, 3), normal(1, 4, 3)

    def loss(direction, weight):
        return regress(Correction(out, direction, weight)).sum()

    slopes = jax.grad(loss, argnums=(0, 1))(direction, jnp.ones(4))
    chex.assert_trees_all_close(slopes, (jnp.zeros((4, 3)), jnp.zeros(4)), atol=0)


def test_directions_are_stopped_where_corrections_are_made():
    def loss(x):
        return regress(correct(normal(0, 4, 3), x**2)).sum()

    allclose(jax.grad(loss)(normal(1, 4, 3)), jnp.zeros((4, 3)))


def test_toward_is_plain_regression():
    out, target = normal(0, 4, 3), normal(1, 4, 3)
    c = toward(out, target)
    allclose(c.direction, target - out)
    allclose(c.target, target)

    def ours(out):
        return regress(toward(out, target)).sum()

    def plain(out):
        return (0.5 * jnp.mean((out - target) ** 2, axis=1)).sum()

    allclose(jax.grad(ours)(out), jax.grad(plain)(out))


def test_a_value_gives_its_direction_of_ascent():
    x = normal(0, 4, 3)
    peak = jnp.array([1.0, -2.0, 0.5])

    def value(x):
        return -0.5 * jnp.sum((x - peak) ** 2, axis=1)

    c = from_value(value, x)
    allclose(c.direction, peak - x)
    allclose(jax.grad(lambda x: regress(from_value(value, x)).sum())(x), (x - peak) / 3)


def test_the_parameters_of_a_value_get_no_gradient():
    def loss(scale):
        return regress(from_value(lambda x: scale * x[:, 0], normal(0, 4, 3))).sum()

    assert jax.grad(loss)(2.0) == 0.0


def test_corrections_pass_jit_vmap_and_scan():
    out, direction = normal(0, 4, 3), normal(1, 4, 3)
    wanted = regress(correct(out, direction))
    allclose(jax.jit(lambda o, d: regress(correct(o, d)))(out, direction), wanted)
    one = jax.vmap(lambda o, d: regress(correct(o[None], d[None]))[0])
    allclose(one(out, direction), wanted)
    _, scanned = jax.lax.scan(
        lambda c, od: (c, regress(correct(*od))), 0, (out[None], direction[None])
    )
    allclose(scanned[0], wanted)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"shape of output \(4, 3\), got \(4,\)"):
        correct(jnp.zeros((4, 3)), jnp.zeros(4))
