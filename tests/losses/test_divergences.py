"""f-divergences: the weight of the table, and what it makes of the gradient."""

import jax
import jax.numpy as jnp
import pytest

from distilljax import paths
from distilljax.diffusion.oracles import Gaussian
from distilljax.losses import DIVERGENCES, divergence_of, skew
from tests.exact import allclose

pytestmark = pytest.mark.usefixtures("x64")
EVERY = [*DIVERGENCES.values(), skew(0.2), skew(0.5)]


@pytest.fixture(params=EVERY, ids=[d.name for d in EVERY])
def divergence(request):
    return request.param


def test_h_is_the_squared_ratio_times_the_second_derivative(divergence):
    r = jnp.geomspace(0.05, 20.0, 9)
    second = jax.vmap(jax.grad(jax.grad(divergence.f)))(r)
    allclose(divergence.h(r), r**2 * second, 1e-10)
    allclose(divergence.f(jnp.ones(())), jnp.zeros(()))


def test_the_gradient_is_that_of_the_gap_times_h(divergence):
    """``d D_f(p_t|q_t)/da = -E_q[h(r) (s_p - s_q) alpha]`` for ``q = N(a, v)``."""
    path, t = paths.vp(), 0.4
    x = jnp.linspace(-12.0, 12.0, 4001)[:, None]
    real = Gaussian(jnp.array([0.3]), jnp.array([0.7]))

    def density(oracle):
        return jnp.exp(oracle.log_density(x, path, t))

    def fake(a):
        return Gaussian(jnp.reshape(a, (1,)), jnp.array([0.9]))

    def value(a):
        q = density(fake(a))
        ratio = jnp.exp(jnp.log(density(real)) - jnp.log(q))
        return jnp.sum(q * divergence.f(ratio)) * (x[1, 0] - x[0, 0])

    a = jnp.asarray(-0.4)
    q = density(fake(a))
    h = divergence.h(density(real) / q)
    gap = (real.score(path)(x, t) - fake(a).score(path)(x, t))[:, 0]
    alpha = path.alpha(jnp.asarray(t))
    wanted = -jnp.sum(q * h * gap) * alpha * (x[1, 0] - x[0, 0])
    allclose(jax.grad(value)(a), wanted, 1e-6)
    assert abs(float(wanted)) > 1e-2


def test_skew_lies_between_its_limits_and_is_twice_jensen_shannon_at_half():
    r = jnp.geomspace(0.1, 10.0, 7)
    allclose(skew(0.5).h(r), 2.0 * DIVERGENCES["js"].h(r))
    allclose(skew(1e-6).h(r), DIVERGENCES["fkl"].h(r), 1e-4)
    allclose(skew(1 - 1e-6).h(r), DIVERGENCES["rkl"].h(r), 1e-4)
    for a in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"a must lie in \(0, 1\)"):
            skew(a)


def test_divergences_are_found_by_name():
    assert divergence_of("js") is DIVERGENCES["js"]
    own = skew(0.3)
    assert divergence_of(own) is own
    with pytest.raises(ValueError, match="divergence.*'jss'.*js"):
        divergence_of("jss")
