"""Derivatives of a network against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np


def check_jvp(network, params, primals, cond, step=1e-6):
    """Asserts the jvp in each of ``(x, t, s)`` alone, in double precision.

    Args:
      network: with a second time.
      params: of the network, float64.
      primals: ``(x, t, s)``, float64.
      cond: its condition.
      step: of the central difference.
    """

    @jax.jit
    def run(x, t, s):
        return network.apply(params, x, t, cond, s)

    push = jax.jit(lambda point, tangent: jax.jvp(run, point, tangent)[1])
    assert run(*primals).dtype == jnp.float64
    for i in range(3):
        tangents = [jnp.zeros_like(a) for a in primals]
        tangents[i] = jnp.ones_like(tangents[i])
        exact = push(tuple(primals), tuple(tangents))
        plus, minus = (
            run(*(a + h * d for a, d in zip(primals, tangents, strict=True)))
            for h in (step, -step)
        )
        assert jnp.abs(exact).max() > 1e-3
        np.testing.assert_allclose(
            exact, (plus - minus) / (2 * step), rtol=1e-5, atol=1e-7
        )
