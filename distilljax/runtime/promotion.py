"""Programs are traced under jax's own rules of promotion, whatever a process asks for.

``jax_numpy_rank_promotion="raise"`` and ``jax_numpy_dtype_promotion="strict"`` are for
the code of the process that sets them. flax, optax and the networks of users broadcast
biases and mix Python numbers with arrays, and could not be traced under them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def usual() -> Iterator[None]:
    """Context, or decorator, of functions that trace; it changes no default of jax."""
    with contextlib.ExitStack() as stack:
        if jax.config.jax_numpy_rank_promotion != "allow":
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        if jax.config.jax_numpy_dtype_promotion != "standard":
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
        yield
