"""DMD2's discriminator head: convolutions on the deepest features, one logit."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import nnx

from distilljax.networks.norms import group_norm

Array = jax.Array


class _Layer(nnx.Module):
    """A convolution, group normalisation with scale and bias, SiLU."""

    def __init__(
        self, inward: int, width: int, window: tuple[int, ...], halves: bool, *, rngs
    ):
        self.convolution = (
            nnx.Conv(
                inward,
                width,
                window,
                strides=(2,) * len(window) if halves else window,
                padding=1 if halves else "VALID",
                rngs=rngs,
            )
            if window
            else nnx.Linear(inward, width, rngs=rngs)
        )
        self.scale = nnx.Param(jax.numpy.ones((width,)))
        self.bias = nnx.Param(jax.numpy.zeros((width,)))
        # The last layer has one position: a group of one channel would be zero there.
        self.groups = math.gcd(width, max(min(32, width // 8), 1))

    def __call__(self, x: Array) -> Array:
        x = group_norm(self.convolution(x), self.groups)
        return jax.nn.silu(x * self.scale[...] + self.bias[...])


class BottleneckHead(nnx.Module):
    """A logit of the last tap, told neither time nor condition.

    Convolutions of side 4 and stride 2 as long as the positions have sides of 8 or
    more, one over all positions that are left, each with group normalisation and SiLU,
    and a linear layer: DMD2's heads for EDM's bottleneck at 8 x 8 and for those of
    Stable Diffusion at 8 x 8 and of SDXL at 32 x 32. There are 32 groups, fewer below
    256 channels.

    Args:
      shape: of the tap, ``[B, ..., d]``.
      width: of the hidden layers; None for ``d``.
      rngs: initialisation keys.
    """

    def __init__(self, shape: tuple[int, ...], *, width: int | None, rngs: nnx.Rngs):
        sides, inward = list(shape[1:-1]), shape[-1]
        width = inward if width is None else width
        self.count = 0
        while sides and min(sides) >= 8:
            self._add(inward, width, (4,) * len(sides), True, rngs)
            sides, inward = [side // 2 for side in sides], width
        self._add(inward, width, tuple(sides), False, rngs)
        self.outward = nnx.Linear(width, 1, rngs=rngs)

    def _add(
        self,
        inward: int,
        width: int,
        window: tuple[int, ...],
        halves: bool,
        rngs: nnx.Rngs,
    ) -> None:
        layer = _Layer(inward, width, window, halves, rngs=rngs)
        setattr(self, f"layer_{self.count}", layer)
        self.count += 1

    def __call__(self, features: Any, *unused: Any) -> Array:
        """Logits ``[B]``; times and condition are not looked at."""
        h = jax.tree.leaves(features)[-1]
        for i in range(self.count):
            h = getattr(self, f"layer_{i}")(h)
        return self.outward(h).reshape(h.shape[0])
