"""GAN losses: values, directions and the approximate penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import losses
from tests.exact import allclose, normal

pytestmark = pytest.mark.usefixtures("x64")


def softplus(x):
    return np.log1p(np.exp(x))


def test_values_are_the_published_ones():
    real, fake = normal(0, 5), normal(1, 5)
    r, f = np.asarray(real), np.asarray(fake)
    allclose(losses.discriminator_nonsaturating(real, fake), softplus(f) + softplus(-r))
    allclose(losses.generator_nonsaturating(fake), softplus(-f))
    hinge = np.maximum(1 + f, 0) + np.maximum(1 - r, 0)
    allclose(losses.discriminator_hinge(real, fake), hinge)
    allclose(losses.generator_hinge(fake), -f)
    allclose(losses.discriminator_relativistic(real, fake), softplus(f - r))
    allclose(losses.generator_relativistic(real, fake), softplus(r - f))


DISCRIMINATORS = (
    losses.discriminator_nonsaturating,
    losses.discriminator_hinge,
    losses.discriminator_relativistic,
)
GENERATORS = (
    lambda real, fake: losses.generator_nonsaturating(fake),
    lambda real, fake: losses.generator_hinge(fake),
    losses.generator_relativistic,
)


@pytest.mark.parametrize("loss", DISCRIMINATORS, ids=lambda f: f.__name__)
def test_discriminators_raise_real_and_lower_fake(loss):
    real, fake = 0.3 * normal(0, 5), 0.3 * normal(1, 5)
    slopes = jax.grad(lambda r, f: loss(r, f).sum(), argnums=(0, 1))(real, fake)
    assert np.all(slopes[0] < 0.0)
    assert np.all(slopes[1] > 0.0)


@pytest.mark.parametrize("loss", GENERATORS, ids=["nonsaturating", "hinge", "relative"])
def test_generators_raise_fake(loss):
    real, fake = normal(0, 5), normal(1, 5)
    slope = jax.grad(lambda f: loss(real, f).sum())(fake)
    assert np.all(slope < 0.0)


@pytest.mark.parametrize("loss", DISCRIMINATORS, ids=lambda f: f.__name__)
def test_heads_are_averaged(loss):
    real, fake = normal(0, 5, 3), normal(1, 5, 3)
    each = jnp.stack([loss(real[:, i], fake[:, i]) for i in range(3)])
    allclose(loss(real, fake), each.mean(axis=0))
    maps = loss(real.reshape(5, 3, 1, 1), fake.reshape(5, 3, 1, 1))
    allclose(maps, each.mean(axis=0))


def test_large_logits_stay_finite():
    huge = jnp.array([-1e4, 1e4])
    for loss in (*DISCRIMINATORS, *GENERATORS):
        value, slope = jax.value_and_grad(lambda f, g=loss: g(-huge, f).sum())(huge)
        assert np.isfinite(value)
        assert np.all(np.isfinite(slope))


def test_the_approximate_penalty_is_the_squared_slope_on_average():
    slope, std = jnp.array([1.0, -2.0, 0.5]), 0.01
    x, noise = normal(0, 3), normal(1, 20_000, 3)

    def logit(x):
        return x @ slope

    logits = jnp.full(20_000, logit(x))
    values = losses.approximate_r1(logits, logit(x + std * noise), std)
    assert values.shape == (20_000,)
    assert float(values.mean()) == pytest.approx(float(slope @ slope), rel=0.05)
