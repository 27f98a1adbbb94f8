"""Transforms of corrections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import metrics, transforms
from distilljax.losses.corrections import Correction, correct, regress
from tests.exact import allclose, normal

pytestmark = pytest.mark.usefixtures("x64")


def example(batch=4, weight=None):
    return correct(normal(0, batch, 3, 2), normal(1, batch, 3, 2), weight)


def per_sample(x):
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim))))


def test_a_normalised_tangent_is_shorter_than_one():
    c = example()
    size = per_sample(c.direction)[:, None, None]
    found = transforms.normalize_tangent(c, 0.1)
    allclose(found.direction, c.direction / (size + 0.1))
    assert np.all(per_sample(found.direction) < 1.0)
    huge = transforms.normalize_tangent(c._replace(direction=1e12 * c.direction))
    allclose(per_sample(huge.direction), jnp.ones(4), 1e-9)


def test_the_rms_norm_differs_by_the_root_of_the_size():
    c = example()
    by_rms = transforms.normalize_tangent(c, 1e-9, transforms.rms_norm)
    by_norm = transforms.normalize_tangent(c, 1e-9)
    allclose(by_rms.direction, np.sqrt(6) * by_norm.direction, 1e-7)


def test_tangents_are_normalised_per_frame_where_the_weight_is_per_frame():
    c = example(weight=jnp.ones((4, 3)))
    size = jnp.sqrt(jnp.sum(c.direction**2, axis=2, keepdims=True))
    found = transforms.normalize_tangent(c, 0.1).direction
    allclose(found, c.direction / (size + 0.1))


def test_tangents_are_normalised_in_float32():
    c = example()
    c = c._replace(direction=c.direction.astype(jnp.bfloat16))
    assert transforms.normalize_tangent(c).direction.dtype == jnp.float32


def test_clip_acts_per_element():
    c = example()
    allclose(transforms.clip(c, 0.5).direction, jnp.clip(c.direction, -0.5, 0.5))


@pytest.mark.parametrize(
    "factor", [2.0, jnp.arange(4.0), jnp.arange(12.0).reshape(4, 3)]
)
def test_scale_multiplies_the_weight(factor):
    c = example(weight=jnp.arange(1.0, 5.0))
    found = regress(transforms.scale(c, factor))
    values = 0.5 * jnp.arange(1.0, 5.0)[:, None] * jnp.mean(c.direction**2, axis=2)
    factor = jnp.asarray(factor)
    if factor.ndim == 2:
        allclose(found, values * factor)
    else:
        allclose(found, values.mean(axis=1) * factor)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_adaptive_l2_is_the_weight_of_mean_flow(p):
    target = normal(1, 4, 6)

    def ours(out):
        c = transforms.adaptive_l2(correct(out, target - out), p, 0.01)
        return regress(c, metrics.sum_squares).sum()

    def published(out):
        s = jnp.sum((out - target) ** 2, axis=1)
        return (s / jax.lax.stop_gradient((s + 0.01) ** p)).sum()

    out = normal(0, 4, 6)
    allclose(ours(out), published(out))
    allclose(jax.grad(ours)(out), jax.grad(published)(out))


def test_the_normaliser_of_dmd():
    x, real, fake = normal(0, 4, 6), normal(1, 4, 6), normal(2, 4, 6)
    c = transforms.normalize_by_error(correct(x, real - fake), reference=real)
    size = jnp.mean(jnp.abs(x - real), axis=1, keepdims=True)
    allclose(c.direction, (real - fake) / size)


def test_the_normaliser_of_dmd_has_a_floor_and_drops_what_is_not_finite():
    x = normal(0, 2, 3)
    direction = jnp.ones((2, 3)).at[1, 0].set(jnp.nan)
    c = transforms.normalize_by_error(correct(x, direction), reference=x, floor=0.5)
    np.testing.assert_array_equal(c.direction, [[2.0, 2, 2], [0, 2, 2]])


@pytest.mark.parametrize(("count", "floor"), [(1, 1.2), (2, 0.3), (8, 0.01875)])
def test_the_floor_of_the_normaliser_falls_with_the_elements(count, floor):
    x, reference = jnp.zeros((3, count)), jnp.full((3, count), 1e-3)
    found = transforms.error_size(x, reference, (1,))
    np.testing.assert_allclose(found, jnp.full((3, 1), floor), rtol=1e-6)
    own = transforms.error_size(x, reference, (1,), 1e-5)
    np.testing.assert_allclose(own, jnp.full((3, 1), 1e-3), rtol=1e-5)


def test_the_floor_of_images_is_that_of_the_public_codes():
    x = jnp.zeros((2, 32, 32, 3))
    found = transforms.error_size(x, x, (1, 2, 3))
    np.testing.assert_allclose(found, jnp.full((2, 1, 1, 1), 1e-5), rtol=1e-6)
    slope = jax.grad(lambda x: transforms.error_size(x, x + 1.0, (1, 2, 3)).sum())(x)
    assert not np.any(slope)


def test_density_ratio_weights_have_mean_one_and_their_shape():
    logits = jnp.array([-1.0, 0.0, 0.5, 2.0])
    c = transforms.weight_by_density_ratio(example(), logits, lambda r: r / (1 + r))
    wanted = jax.nn.sigmoid(logits)
    allclose(c.weight, wanted / wanted.mean(), 1e-5)
    reverse_kl = transforms.weight_by_density_ratio(example(), logits, jnp.ones_like)
    allclose(reverse_kl.weight, jnp.ones(4), 1e-5)
    wild = transforms.weight_by_density_ratio(
        example(), jnp.array([-1e9, 1e9, 0, 0]), lambda r: r
    )
    assert np.all(np.isfinite(wild.weight))


def test_density_ratios_are_measured_against_what_is_expected():
    logits = jnp.array([-0.5, 0.0, 0.5, 1.0])
    expected = jnp.array([1.0, 2.0, 1.0, 4.0])
    c = transforms.weight_by_density_ratio(example(), logits, lambda r: r, expected)
    wanted = jnp.exp(logits) / expected
    allclose(c.weight, wanted / wanted.mean(), 1e-5)
    bounded = transforms.density_ratio(jnp.array([-jnp.inf, 0.0, jnp.inf]))
    allclose(bounded, jnp.array([0.1, 1.0, 20.0]))


def test_reward_weights_never_turn_an_update_around():
    advantage = jnp.array([-9.0, -2.5, 0.0, 9.0])
    c = transforms.weight_by_reward(example(), advantage)
    allclose(c.weight, jnp.array([0.0, 0.5, 1.0, 2.0]))
    signed = transforms.weight_by_reward(example(), advantage, base=0.0, strength=3.0)
    allclose(signed.weight, jnp.array([-3.0, -1.5, 0.0, 3.0]))


def test_groups_get_mean_zero_and_unit_spread():
    c = transforms.group_normalize(example(8), 2)
    grouped = c.direction.reshape(2, 4, 3, 2)
    allclose(grouped.mean(axis=1), jnp.zeros((2, 3, 2)))
    allclose(grouped.std(axis=1), jnp.ones((2, 3, 2)), 1e-2)
    with pytest.raises(ValueError, match="groups must divide the batch 8, got 3"):
        transforms.group_normalize(example(8), 3)


def test_samples_that_are_not_finite_leave_the_loss():
    out = normal(0, 3, 2)
    direction = jnp.ones((3, 2)).at[0, 0].set(jnp.nan).at[2, 1].set(jnp.inf)

    def loss(out):
        return regress(transforms.drop_nonfinite(correct(out, direction))).sum()

    value, slope = jax.value_and_grad(loss)(out)
    assert float(value) == 0.5
    np.testing.assert_array_equal(slope, [[0, 0], [-0.5, -0.5], [0, 0]])


@pytest.mark.parametrize(
    "transform",
    [
        transforms.normalize_tangent,
        transforms.adaptive_l2,
        transforms.clip,
        transforms.drop_nonfinite,
        lambda c: transforms.normalize_by_error(c, reference=0 * c.output),
    ],
)
def test_transforms_treat_samples_alike(transform):
    c, order = example(), jnp.array([2, 0, 3, 1])
    moved = Correction(*(leaf[order] for leaf in c))
    for found, wanted in zip(transform(moved), transform(c), strict=True):
        allclose(found, wanted[order])
