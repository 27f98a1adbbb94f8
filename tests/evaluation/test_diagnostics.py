"""Diagnostics are silent where all is well and speak where something was broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import oracles, paths
from distilljax.evaluation import Moments, diagnostics, frechet_distance

RNG = np.random.default_rng(0)


def batch(std, seed, size=4000):
    return std * jax.random.normal(jax.random.key(seed), (size, 2))


@pytest.fixture(scope="module")
def noise():
    eps = jax.random.normal(jax.random.key(9), (4000, 2))
    return eps, jnp.linspace(0.05, 0.95, 4000)


def lag(denoiser_std, fresh_std, noise):
    path = paths.linear()
    oracle = oracles.Gaussian(jnp.zeros(2), denoiser_std * jnp.ones(2))
    denoiser = oracle.denoised(path)
    own, fresh = batch(denoiser_std, 0), batch(fresh_std, 1)
    return diagnostics.critic_lag(denoiser, own, fresh, *noise, path)


def test_a_critic_that_keeps_up_has_no_lag(noise):
    found = lag(1.0, 1.0, noise)
    assert abs(found.ratio - 1) < 4 * found.error
    assert 0 < found.error < 0.05
    assert found.ratio == pytest.approx(found.fresh / found.own)


def test_a_critic_of_an_earlier_generator_lags(noise):
    assert lag(0.5, 1.5, noise).ratio > 1.5


def test_denoising_error_in_closed_form(noise):
    """The posterior variance of a standard normal on the linear path."""
    path = paths.linear()
    oracle = oracles.Gaussian(jnp.zeros(2), jnp.ones(2))
    x, (eps, _) = batch(1.0, 0), noise
    found = diagnostics.denoising_error(oracle.denoised(path), x, eps, 0.5, path)
    assert found.shape == (4000,)
    assert float(found.mean()) == pytest.approx(0.25 / (0.25 + 0.25), rel=0.05)


def test_latent_drift_names_the_channel():
    data = RNG.normal(size=(200, 4, 4, 3)) * (1, 2, 3) + (0, 1, 2)
    assert diagnostics.latent_drift(data, data)[:2] == (0.0, 0.0)
    moved = diagnostics.latent_drift(data + np.array([0, 0, 0.6]), data)
    assert moved.channel == 2
    shift = 0.6 / data.reshape(-1, 3).std(0)[2]
    assert moved.mean == pytest.approx(shift / np.sqrt(3))
    assert moved.std == pytest.approx(0, abs=1e-12)
    narrow = diagnostics.latent_drift(
        (data - data.mean((0, 1, 2))) * np.array([1, 0.5, 1]) + data.mean((0, 1, 2)),
        data,
    )
    assert narrow.channel == 1
    assert narrow.mean == pytest.approx(0, abs=1e-12)
    assert narrow.std == pytest.approx(np.log(2) / np.sqrt(3))


def test_collapse_is_seen_within_a_class():
    data = RNG.normal(size=(300, 5))
    well = diagnostics.collapse(RNG.normal(size=(200, 5)), data)
    assert well.diversity == pytest.approx(1, abs=0.05)
    assert not well.alarm
    ill = diagnostics.collapse(0.3 * RNG.normal(size=(200, 5)), data)
    assert ill.diversity == pytest.approx(0.3, abs=0.03)
    assert ill.alarm
    assert diagnostics.collapse(np.ones((9, 5)), data) == (0.0, True)


def test_tangent_norms_by_time():
    t = np.array([0.1, 0.2, 0.3, 0.5, 0.9, 1.0, 1.5])
    direction = np.array([3.0, 1.0, 2.0, 5.0, np.nan, 4.0, 9.0])[:, None]
    found = diagnostics.tangent_norms(direction, t, (0, 0.4, 0.5, 1.0), (0, 50, 100))
    np.testing.assert_array_equal(found.counts, [3, 0, 3])
    np.testing.assert_array_equal(found.percentiles[0], [1, 2, 3])
    assert np.isnan(found.percentiles[1]).all()
    np.testing.assert_array_equal(found.percentiles[2], [4, 5, np.inf])


def test_a_noise_bank_moves_with_the_parameters_alone():
    data = RNG.normal(size=(500, 3))
    bank = diagnostics.NoiseBank(
        lambda params, eps, cond, key: params * eps,
        RNG.normal(size=(400, 3)),
        Moments.of(data),
        lambda x: x,
    )
    assert bank(1.0) == bank(1.0) == frechet_distance(bank.eps, data)
    assert bank(1.0) < bank(1.2) < bank(2.0)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda x: diagnostics.critic_lag(None, x, x[:3], x, 0.5, None),
            r"one shape, got \(5, 2\), \(3, 2\)",
        ),
        (lambda x: diagnostics.latent_drift(x, x[:, :1]), "equally many channels"),
        (lambda x: diagnostics.latent_drift(x, 0 * x + 1), "data .*channel 0"),
        (lambda x: diagnostics.collapse(x, 0 * x), "two different rows"),
        (lambda x: diagnostics.tangent_norms(x, x[:, 0], (1, 0)), "edges must rise"),
        (lambda x: diagnostics.tangent_norms(x, x, (0, 1)), r"t \[B\] must fit"),
    ],
)
def test_bad_input_is_named(call, expected):
    with pytest.raises(ValueError, match=expected):
        call(RNG.normal(size=(5, 2)))
