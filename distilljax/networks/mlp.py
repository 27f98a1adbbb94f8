"""A residual MLP with adaptive layer norm, for vectors and small images.

It predicts at one time, or jumps with two: the second time enters through a
zero-initialised projection, so that at the start a two-time student is its teacher.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distilljax.core.binding import Network
from distilljax.diffusion import paths
from distilljax.diffusion.paths import Path
from distilljax.diffusion.predictions import Prediction
from distilljax.networks.adapter import capabilities_of, functionalize
from distilljax.networks.conditions import Conditions, null_conditions
from distilljax.networks.embeddings import (
    Frequencies,
    GuidanceEmbedding,
    TimeEmbedding,
    conditioning,
    log_clock,
)
from distilljax.networks.norms import layer_norm
from distilljax.runtime import words

Array = jax.Array


class Block(nnx.Module):
    """``h + gate * down(silu(up(LN(h) (1 + scale) + shift)))``.

    Args:
      width: features of the residual stream.
      hidden: features between the two layers.
      embedding: features of the conditioning vector.
      dropout: rate after the activation.
      rngs: initialisation keys.
    """

    def __init__(
        self, width: int, hidden: int, embedding: int, dropout: float, *, rngs: nnx.Rngs
    ):
        self.modulation = nnx.Linear(
            embedding, 3 * width, kernel_init=nnx.initializers.zeros, rngs=rngs
        )
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, h: Array, c: Array, key: Array | None) -> Array:
        """New residual stream, shape of ``h``."""
        shift, scale, gate = jnp.split(self.modulation(c), 3, -1)
        inner = jax.nn.silu(self.up(layer_norm(h) * (1.0 + scale) + shift))
        inner = self.dropout(inner, rngs=key, deterministic=key is None)
        return h + gate * self.down(inner)


class MLP(nnx.Module):
    """The module; `mlp` makes the network.

    Args:
      sample_shape: shape of a sample, which is flattened.
      width: features of the residual stream.
      hidden: features inside a block.
      blocks: number of blocks.
      embedding: features of the conditioning vector.
      frequencies: of both time embeddings.
      conditions: keywords of `Conditions`.
      second_time: whether it takes the code of a second time.
      guidance: frequencies of a guidance scale, or None.
      dropout: rate inside the blocks.
      rngs: initialisation keys.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        *,
        width: int,
        hidden: int,
        blocks: int,
        embedding: int,
        frequencies: Frequencies,
        conditions: dict[str, Any],
        second_time: bool,
        guidance: Frequencies | None,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        zeros = nnx.initializers.zeros
        self.time = TimeEmbedding(embedding, frequencies, rngs=rngs)
        if second_time:
            self.second = TimeEmbedding(embedding, frequencies, zero=True, rngs=rngs)
        if guidance is not None:
            self.guidance = GuidanceEmbedding(embedding, guidance, rngs=rngs)
        self.conditions = Conditions(embedding, **conditions, rngs=rngs)
        size = math.prod(sample_shape)
        beside = math.prod(sample_shape[:-1]) * self.conditions.image_channels
        self.inward = nnx.Linear(size + beside, width, rngs=rngs)
        for i in range(blocks):
            setattr(
                self, f"block_{i}", Block(width, hidden, embedding, dropout, rngs=rngs)
            )
        self.modulation = nnx.Linear(embedding, 2 * width, kernel_init=zeros, rngs=rngs)
        self.outward = nnx.Linear(width, size, kernel_init=zeros, rngs=rngs)
        self.blocks = blocks

    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Any = None,
        s: Array | None = None,
        *,
        w: Array | None = None,
        taps: bool = False,
        rng: Array | None = None,
    ) -> Any:
        """Prediction, shape of ``x``; with ``taps`` also the stream after every block.

        Args:
          x: state ``[B, ...]``.
          t: time ``[B]``.
          cond: see `Conditions`.
          s: code of the second time ``[B]``.
          w: guidance scale ``[B]``; None adds nothing.
          taps: whether to return ``(out, tuple of [B, width])``.
          rng: dropout key.
        """
        vector, image = self.conditions(cond, x)
        beside = jnp.concatenate([x, *image], -1)
        h = self.inward(beside.reshape(x.shape[0], -1))
        c = conditioning(self, t, s, w, vector, h.dtype)
        features = []
        for i in range(self.blocks):
            key = None if rng is None else jax.random.fold_in(rng, i)
            h = getattr(self, f"block_{i}")(h, c, key)
            features.append(h)
        shift, scale = jnp.split(self.modulation(c), 2, -1)
        out = self.outward(layer_norm(h) * (1.0 + scale) + shift).reshape(x.shape)
        return (out, tuple(features)) if taps else out


@words.network
def mlp(
    sample_shape: tuple[int, ...],
    *,
    path: Path | None = None,
    prediction: Prediction | str = "velocity",
    num_classes: int | None = None,
    cond_features: int | None = None,
    image_channels: int | None = None,
    second_time: bool = False,
    time_code: str = "gap",
    guidance: Frequencies | None = None,
    width: int = 256,
    hidden: int = 256,
    blocks: int = 4,
    embedding: int = 128,
    frequencies: Frequencies = Frequencies(),
    label_std: float = 0.02,
    dropout: float = 0.0,
    dtype: Any = None,
    name: str = "mlp",
) -> Network:
    """The MLP as a network; the defaults have 1.1 M parameters on digits.

    Args:
      sample_shape: shape of a sample; ``x [B, *sample_shape]`` is flattened inside.
      path: path on which it predicts; default `paths.linear`.
      prediction: kind of its prediction.
      num_classes: takes labels ``[B]``; the null class is one more.
      cond_features: takes embeddings ``[B, d]`` instead; zero is the null condition.
      image_channels: takes images ``[B, h, w, c]`` too, see `Conditions`; samples are
        then images ``(H, W, C)``.
      second_time: whether it takes a second time.
      time_code: see `functionalize`.
      guidance: takes a guidance scale beside the condition (see `binding.told`):
        frequencies of its embedding, which is zero at first. LCM's are ``(0.1, 1000.0,
        128)``, SANA-Sprint's ``(1e-5, 0.1, 128)``.
      width: features of the residual stream.
      hidden: features inside a block.
      blocks: number of blocks.
      embedding: features of the conditioning vector.
      frequencies: of the time embeddings.
      label_std: standard deviation of the initial label table.
      dropout: rate inside the blocks, in ``[0, 1)``.
      dtype: compute dtype, see `functionalize`.
      name: how errors call it.

    Returns:
      The network: ``jvp``, ``taps`` (the residual stream after every block), and
      ``second_time``, ``null``, ``guidance``, ``dropout`` as asked for. It predicts 0
      at first.

    Raises:
      ValueError: on sizes below 1, a dropout rate outside [0, 1), two kinds of vector
        conditions, or an image beside samples that are none.
    """
    sizes = {"width": width, "hidden": hidden, "blocks": blocks, "embedding": embedding}
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    if image_channels and len(sample_shape) != 3:
        raise ValueError(
            "image_channels needs samples of shape (height, width, channels), got "
            f"{tuple(sample_shape)}; pass the condition as an embedding, cond_features="
        )
    path = paths.linear() if path is None else path
    conditions = {
        "num_classes": num_classes,
        "features": cond_features,
        "image_channels": image_channels,
    }
    null = null_conditions(**conditions)
    return functionalize(
        lambda rngs: MLP(
            tuple(sample_shape),
            frequencies=Frequencies(*frequencies),
            conditions={**conditions, "std": label_std},
            second_time=second_time,
            guidance=None if guidance is None else Frequencies(*guidance),
            dropout=dropout,
            **sizes,
            rngs=rngs,
        ),
        path=path,
        prediction=prediction,
        capabilities=capabilities_of(null, second_time, guidance, dropout),
        time_code=time_code,
        clock=log_clock(path),
        null=null,
        num_classes=num_classes if image_channels is None else None,
        dtype=dtype,
        name=name,
    )
