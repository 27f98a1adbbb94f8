"""The jump to the data, as the discrete methods of this family take it."""

from __future__ import annotations

import jax

from distilljax.diffusion.flow_maps import FlowMap
from distilljax.diffusion.paths import Time

Array = jax.Array


def _to_data(f: FlowMap) -> FlowMap:
    """The consistency function of a map, whatever end time it is called with."""

    def to_data(x: Array, t: Time, s: Time) -> Array:
        return f(x, t, 0.0)

    return to_data
