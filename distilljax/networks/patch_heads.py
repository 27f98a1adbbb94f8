"""Discriminator heads with a logit per position of every tap (multi-scale, patches)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distilljax.networks.embeddings import (
    ConditionEmbedding,
    Frequencies,
    TimeEmbedding,
)
from distilljax.networks.norms import layer_norm

Array = jax.Array
HALF = 0.5**0.5
# Sides of the window in which positions see each other, by axes of positions: the nine
# neighbours of a token in StyleGAN-T's heads, along the grid where there is one.
WINDOWS = {0: (), 1: (9,), 2: (3, 3), 3: (3, 3, 3)}


def slope(x: Array) -> Array:
    """Leaky ReLU of slope 0.2."""
    return jax.nn.leaky_relu(x, 0.2)


class PatchHead(nnx.Module):
    """A logit per position of one tap.

    A linear layer, residual convolutions over the positions, a linear layer; layer
    norms per position keep the samples of a batch apart.

    Args:
      features: size of the tap's last axis.
      positions: number of its axes between the batch and the features.
      width: of the hidden layers.
      layers: residual convolutions.
      rngs: initialisation keys.
    """

    def __init__(
        self,
        features: int,
        positions: int,
        *,
        width: int,
        layers: int,
        rngs: nnx.Rngs,
    ):
        self.inward = nnx.Linear(features, width, rngs=rngs)
        for i in range(layers):
            made = (
                nnx.Conv(width, width, WINDOWS[positions], rngs=rngs)
                if positions
                else nnx.Linear(width, width, rngs=rngs)
            )
            setattr(self, f"layer_{i}", made)
        self.outward = nnx.Linear(width, 1, rngs=rngs)
        self.layers = layers

    def __call__(self, tap: Array, added: Array, product: Array | None) -> Array:
        """Logits ``[B, positions]``.

        Args:
          tap: ``[B, ..., features]``.
          added: vector ``[B, width]`` added at every position.
          product: vector ``[B, width]`` whose inner product with the hidden features is
            added to the logits.
        """
        h = slope(layer_norm(self.inward(layer_norm(tap))) + _over(added, tap))
        for i in range(self.layers):
            h = (h + slope(layer_norm(getattr(self, f"layer_{i}")(h)))) * HALF
        logits = self.outward(h)[..., 0]
        if product is not None:
            inner = jnp.sum(h * _over(product, tap), -1)
            logits = logits + inner / np.sqrt(h.shape[-1])
        return logits.reshape(tap.shape[0], -1)


def _over(vector: Array, tap: Array) -> Array:
    """A vector ``[B, d]`` at every position of a tap."""
    return vector.reshape(vector.shape[0], *(1,) * (tap.ndim - 2), vector.shape[-1])


def mixed(taps: Sequence[Array], width: int) -> list[Array]:
    """Taps mixed over channels and scales by fixed random projections.

    Every tap is projected to ``width`` channels; from the last to the first the mixture
    so far, resized, is added and a random window of 3 positions runs over the sum. What
    a discriminator sees of one tap then depends on the deeper ones, so that it cannot
    attend to a part of the features alone. The weights are constants.

    Args:
      taps: arrays ``[B, ..., d]`` with equally many axes, shallow to deep.
      width: channels of the mixtures.

    Returns:
      Arrays ``[B, ..., width]`` at the positions of the taps.

    References:
      Sauer et al., Projected GANs Converge Faster, 2021, arXiv:2111.01007, section 3.2.
    """
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Array:
        return jnp.asarray(rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])))

    out: list[Array] = []
    for tap in reversed(taps):
        own = layer_norm(tap) @ random(tap.shape[-1], width).astype(tap.dtype)
        if out:
            shape = (*own.shape[:-1], width)
            own = (own + jax.image.resize(out[-1], shape, "linear")) * HALF
        window = (3,) * (own.ndim - 2)
        kernel = random(*window, width, width).astype(own.dtype)
        out.append(_convolved(own, kernel) if window else own @ kernel)
    return out[::-1]


def _convolved(x: Array, kernel: Array) -> Array:
    axes = "XYZ"[: x.ndim - 2]
    names = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    window = (1,) * len(axes)
    return jax.lax.conv_general_dilated(
        x, kernel, window, "SAME", dimension_numbers=names
    )


class PatchHeads(nnx.Module):
    """One `PatchHead` per tap, with common embeddings of time and condition.

    Args:
      shapes: shapes of the taps, ``[B, ..., d]``.
      width: of the hidden layers.
      layers: residual convolutions of a head.
      projected: whether the heads see `mixed` taps.
      product: whether the condition enters by an inner product instead of a sum.
      frequencies: of the time embedding.
      second_time: whether they are told a second time.
      num_classes: see `ConditionEmbedding`.
      cond_features: see `ConditionEmbedding`.
      rngs: initialisation keys.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        *,
        width: int,
        layers: int,
        projected: bool,
        product: bool,
        frequencies: Frequencies,
        second_time: bool,
        num_classes: int | None,
        cond_features: int | None,
        rngs: nnx.Rngs,
    ):
        ranks = {len(shape) for shape in shapes}
        if max(ranks) - 2 not in WINDOWS or (projected and len(ranks) > 1):
            raise ValueError(
                "heads with a logit per position want taps [B, ..., d] of at most "
                f"{max(WINDOWS)} axes of positions, and projected ones equally many "
                f"axes in each; got {list(shapes)}; use kind='pooled'"
            )
        self.time = TimeEmbedding(width, frequencies, rngs=rngs)
        self.condition = ConditionEmbedding(
            width,
            num_classes=num_classes,
            features=cond_features,
            std=0.3,
            rngs=rngs,
        )
        for i, shape in enumerate(shapes):
            size = width if projected else shape[-1]
            made = PatchHead(
                size, len(shape) - 2, width=width, layers=layers, rngs=rngs
            )
            setattr(self, f"head_{i}", made)
        if second_time:
            self.told = TimeEmbedding(width, frequencies, rngs=rngs)
        self.count, self.width = len(shapes), width
        self.projected = projected
        self.product = product and (num_classes, cond_features) != (None, None)

    def __call__(
        self,
        features: Any,
        t: Array,
        cond: Array | None = None,
        s: Array | None = None,
    ) -> Array:
        """Logits ``[B, n]``, every position of every tap.

        Args:
          features: arrays ``[B, ..., d]``.
          t: time ``[B]``.
          cond: see `ConditionEmbedding`.
          s: the second time ``[B]``, of heads that are told one.
        """
        taps = jax.tree.leaves(features)
        if self.projected:
            taps = mixed(taps, self.width)
        condition = self.condition(cond)
        added, product = self.time(t, taps[0].dtype), None
        if s is not None:
            added = added + self.told(s, added.dtype)
        if self.product:
            product = jnp.broadcast_to(condition, added.shape)
        else:
            added = added + condition
        logits = [
            getattr(self, f"head_{i}")(tap, added, product)
            for i, tap in enumerate(taps)
        ]
        return jnp.concatenate(logits, 1)
