"""Parameters without compiling initialisers, away from the zeros of the start."""

import jax
import jax.numpy as jnp
import numpy as np


def filled(network, dtype=np.float32, seed=0):
    """Parameters of a network: kernels of unit gain plus noise everywhere.

    Args:
      network: whose ``init`` gives the shapes.
      dtype: of the values.
      seed: of the values.
    """
    rng = np.random.default_rng(seed)

    def one(leaf):
        # Kernels [in, out], stacks of them, and convolutions [k, k, in, out].
        inputs = np.prod(leaf.shape[-4:-1]) if leaf.ndim > 3 else leaf.shape[-2:][0]
        scale = 1.0 / np.sqrt(inputs) if leaf.ndim > 1 else 0.2
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), dtype)

    return jax.tree.map(one, jax.eval_shape(network.init, jax.random.key(0)))
