"""Networks as functions: what is made of one without touching its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import paths
from distilljax.core.binding import Bound, Network, joint
from distilljax.diffusion.predictions import recompose

X, T = (
    jax.random.normal(jax.random.key(0), (4, 3, 2)),
    jnp.asarray([0.1, 0.6, 1.0, 1.5]),
)


def double(params, x, t, cond=None, s=None, *, taps=False, rng=None):
    out = jnp.concatenate([0.3 * x + 0.1, jnp.tanh(x)], -1)
    return (out, (x,)) if taps else out


@pytest.mark.parametrize("sigma_d", [1.0, 0.5])
def test_two_outputs_are_reconciled_into_one_clean_sample(sigma_d):
    path = paths.trigflow(sigma_d)
    network = Network("double", double, lambda key: {}, path, "x0")
    net = Bound("student", joint(network), {})
    clean = (0.3 * X / sigma_d + 0.1) * sigma_d
    eps = jnp.tanh(X / sigma_d)
    alpha, sigma = (f(T)[:, None, None] for f in (path.alpha, path.sigma))
    whole = alpha**2 + sigma**2
    wanted = (sigma**2 * clean + alpha * (X - sigma * eps)) / whole
    np.testing.assert_allclose(net.denoiser()(X, T), wanted, rtol=2e-5, atol=1e-6)
    v = recompose(path, "v", clean, eps, T)
    np.testing.assert_allclose(net.prediction(kind="v")(X, T), v, rtol=2e-5, atol=1e-6)
    denoised, (seen,) = net.network.apply({}, X, T, taps=True)
    assert denoised.shape == seen.shape == X.shape


def test_a_network_with_one_output_is_no_joint_one():
    def single(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        return x

    network = Network("single", single, lambda key: {}, paths.trigflow(), "x0")
    with pytest.raises(ValueError, match="must predict x0 and eps"):
        Bound("student", joint(network), {}).denoiser()(X, T)
    head = Network("head", None, lambda key: {})
    with pytest.raises(ValueError, match="predicts nothing"):
        joint(head)
