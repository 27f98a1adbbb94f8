"""What the backward pass keeps of a norm, an activation and the layer behind them.

As they are, the approximate GELU keeps six arrays of the size of its input, SiLU three
and a modulated norm four, and the layer behind keeps what they return: most of what a
network remembers. Computed again they cost a few elementwise operations beside the
matrix products around them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def from_input(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of which the backward pass keeps the arguments alone.

    For elementwise operations and norms in front of one linear layer or convolution:
    the derivative of a product needs its input, which is computed again, and not its
    result, so that no product is.

    Args:
      fn: function of arrays; parameters may be closed over.
    """
    return jax.checkpoint(fn, policy=jax.checkpoint_policies.nothing_saveable)
