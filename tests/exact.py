"""Paths, times and an oracle that the tests of the algebra share."""

import jax
import jax.numpy as jnp
import numpy as np

from distilljax import paths
from distilljax.diffusion.oracles import Gaussian

PATHS = {
    "linear": paths.linear(),
    "linear_half": paths.linear(sigma_d=0.5),
    "vp": paths.vp(),
    "vp_cosine": paths.vp_cosine(),
    "edm": paths.edm(),
    "trigflow": paths.trigflow(),
    "trigflow_half": paths.trigflow(sigma_d=0.5),
}
BRIDGES = {
    "bridge_linear": paths.bridge_linear(0.4),
    "bridge_residual": paths.bridge_residual(2.0),
}


def gaussian() -> Gaussian:
    """Data in the plane whose spread differs by axis and from every sigma_d."""
    return Gaussian(jnp.array([0.7, -0.3]), jnp.array([0.8, 0.3]))


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers in the default float type."""
    return jax.random.normal(jax.random.key(seed), shape)


def inner_times(path: paths.Path, count: int = 5) -> jax.Array:
    """Times away from both ends, at equal noise angles."""
    low, high = 0.1, float(path.angle(jnp.asarray(path.t_max))) - 0.1
    return path.time_of_angle(jnp.linspace(low, high, count))


def allclose(found, wanted, tol: float = 1e-12) -> None:
    """Equal up to ``tol`` of the larger of 1 and the magnitude wanted."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.dtype == wanted.dtype or wanted.dtype != np.float32
    np.testing.assert_allclose(found, wanted, rtol=tol, atol=tol)
