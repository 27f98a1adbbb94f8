"""Metrics between an output and its target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import metrics
from distilljax.losses.corrections import correct, regress
from tests.exact import allclose, normal

pytestmark = pytest.mark.usefixtures("x64")


def values(metric, direction):
    return regress(correct(jnp.zeros_like(direction), direction), metric)


def gradient(metric, direction):
    out = normal(9, *direction.shape)
    return jax.grad(lambda o: regress(correct(o, direction), metric).sum())(out)


def test_values_are_the_published_ones():
    r = normal(0, 4, 3, 2)
    squares = jnp.sum(r**2, axis=(1, 2))
    c = 0.3
    allclose(values(metrics.half_mse, r), squares / 12)
    allclose(values(metrics.sum_squares, r), squares)
    allclose(values(metrics.norm, r), jnp.sqrt(squares))
    allclose(values(metrics.absolute, r), jnp.mean(jnp.abs(r), axis=(1, 2)))
    allclose(values(metrics.largest, r), jnp.max(jnp.abs(r), axis=(1, 2)))
    huber = jnp.sqrt(squares + c**2) - c
    allclose(values(metrics.PseudoHuberVector(c), r), huber)
    element = jnp.mean(jnp.sqrt(r**2 + c**2) - c, axis=(1, 2))
    allclose(values(metrics.PseudoHuberElement(c), r), element)


def test_gradients_move_the_output_along_the_direction():
    r = normal(0, 4, 3)
    size = jnp.sqrt(jnp.sum(r**2, axis=1, keepdims=True))
    c = 0.3
    allclose(gradient(metrics.sum_squares, r), -2 * r)
    allclose(gradient(metrics.norm, r), -r / size)
    allclose(gradient(metrics.absolute, r), -jnp.sign(r) / 3)
    most = jnp.abs(r) == jnp.max(jnp.abs(r), axis=1, keepdims=True)
    allclose(gradient(metrics.largest, r), jnp.where(most, -jnp.sign(r), 0.0))
    huber = -r / jnp.sqrt(size**2 + c**2)
    allclose(gradient(metrics.PseudoHuberVector(c), r), huber)
    element = -r / jnp.sqrt(r**2 + c**2) / 3
    allclose(gradient(metrics.PseudoHuberElement(c), r), element)


def test_pseudo_huber_of_width_zero_is_the_norm():
    r = normal(0, 4, 3)
    allclose(values(metrics.PseudoHuberVector(0.0), r), values(metrics.norm, r))


@pytest.mark.parametrize(
    "metric",
    [
        metrics.half_mse,
        metrics.norm,
        metrics.PseudoHuberVector(0.0),
        metrics.PseudoHuberElement(0.0),
        metrics.PseudoHuberVector(0.1),
    ],
)
def test_at_the_target_the_gradient_is_zero(metric):
    np.testing.assert_array_equal(
        gradient(metric, jnp.zeros((2, 3))), jnp.zeros((2, 3))
    )


@pytest.mark.parametrize(
    "metric", [metrics.sum_squares, metrics.PseudoHuberVector(0.2)]
)
def test_values_per_frame(metric):
    r = normal(0, 4, 3, 5)
    c = correct(jnp.zeros_like(r), r, jnp.ones((4, 3)))
    found = regress(c, metric)
    for i in range(3):
        allclose(found[:, i], values(metric, r[:, i]))


def test_values_are_at_least_float32():
    r = normal(0, 4, 3).astype(jnp.bfloat16)
    assert values(metrics.half_mse, r).dtype == jnp.float32
    assert values(metrics.PseudoHuberVector(0.1), r).dtype == jnp.float32


def test_a_feature_metric_compares_features_of_output_and_target():
    def features(x):
        return {"square": x**2, "sum": x.sum(axis=1)}

    out, direction = normal(0, 4, 3), normal(1, 4, 3)
    metric = metrics.FeatureMetric(features)
    target = out + direction
    wanted = 0.5 * jnp.mean((target**2 - out**2) ** 2, axis=1)
    wanted += 0.5 * (target.sum(axis=1) - out.sum(axis=1)) ** 2
    allclose(regress(correct(out, direction), metric), wanted)

    def plain(o):
        a, b = features(o), features(target)
        error = 0.5 * jnp.mean((a["square"] - b["square"]) ** 2, axis=1)
        return (error + 0.5 * (a["sum"] - b["sum"]) ** 2).sum()

    # The target moves with a stopped output only: its features get no gradient.
    found = jax.grad(lambda o: regress(correct(o, target - o), metric).sum())(out)
    allclose(found, jax.grad(plain)(out))


def test_a_feature_metric_takes_one_weight_per_sample():
    c = correct(jnp.zeros((4, 3, 2)), jnp.ones((4, 3, 2)), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="one value per sample"):
        regress(c, metrics.FeatureMetric(lambda x: x))


def test_metrics_are_values():
    assert metrics.PseudoHuberVector(0.1) == metrics.PseudoHuberVector(0.1)
    assert metrics.PseudoHuberElement(0.1) != metrics.PseudoHuberElement(0.2)


def test_mse_cosine_adds_the_angle_between_output_and_target():
    output = jnp.asarray([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [1.0, 1.0]]])
    target = jnp.asarray([[[0.0, 1.0], [0.0, 1.0]], [[3.0, 4.0], [-1.0, -1.0]]])
    found = metrics.mse_cosine(output, target - output, 1)
    # Cosines 0 and 1, then 1 and -1.
    np.testing.assert_allclose(found, [0.75 + 0.5, 2.0 + 1.0], atol=1e-6)
    rest = jax.grad(lambda o: metrics.mse_cosine(o, jnp.zeros_like(o), 1).sum())(output)
    np.testing.assert_allclose(rest, 0.0, atol=1e-6)
