"""A convolutional UNet for pixels: EDM's DDPM++, modulated by scale and shift."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distilljax.core.binding import Network
from distilljax.diffusion import paths
from distilljax.diffusion.paths import Path
from distilljax.diffusion.predictions import Prediction
from distilljax.networks.activations import from_input
from distilljax.networks.adapter import capabilities_of, functionalize
from distilljax.networks.attention import attention
from distilljax.networks.conditions import Conditions, null_conditions
from distilljax.networks.embeddings import (
    Frequencies,
    GuidanceEmbedding,
    TimeEmbedding,
    conditioning,
    log_clock,
)
from distilljax.networks.norms import group_norm, pixel_norm, rms_norm
from distilljax.runtime import words

Array = jax.Array
ZEROS = nnx.initializers.zeros
# Sums of two streams keep their variance.
HALF = 0.5**0.5


def resampled(x: Array, factor: int) -> Array:
    """Twice (2) or half (-2) as large along height and width; 1 leaves ``x`` alone."""
    if factor == 2:
        return x.repeat(2, 1).repeat(2, 2)
    if factor == -2:
        b, h, w, c = x.shape
        return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return x


class Norm(nnx.Module):
    """Group norm with a learned scale and shift."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        # At most 32 groups of at least 4 channels, as in EDM.
        most = max(1, min(32, channels // 4))
        self.groups = max(g for g in range(1, most + 1) if channels % g == 0)
        self.scale = nnx.Param(jnp.ones((channels,)))
        self.shift = nnx.Param(jnp.zeros((channels,)))

    def __call__(self, x: Array) -> Array:
        """Shape of ``x [B, H, W, C]``."""
        normed = group_norm(x, self.groups)
        return normed * self.scale.get_value() + self.shift.get_value()


class Block(nnx.Module):
    """Residual block, modulated after its first convolution; optionally attention.

    Args:
      inward: channels of the input.
      channels: channels of the output.
      embedding: features of the conditioning vector.
      heads: attention heads, 0 for a block without attention.
      factor: see `resampled`.
      dropout: rate before the second convolution.
      double_norm: pixel-normalises scale and shift (sCM, section 4.1).
      rngs: initialisation keys.
    """

    def __init__(
        self,
        inward: int,
        channels: int,
        embedding: int,
        *,
        heads: int = 0,
        factor: int = 1,
        dropout: float = 0.0,
        double_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        self.factor, self.heads, self.double_norm = factor, heads, double_norm
        self.norm = Norm(inward, rngs=rngs)
        self.first = nnx.Conv(inward, channels, (3, 3), rngs=rngs)
        start = nnx.initializers.lecun_normal() if double_norm else ZEROS
        self.modulation = nnx.Linear(
            embedding, 2 * channels, kernel_init=start, rngs=rngs
        )
        self.inner_norm = Norm(channels, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.second = nnx.Conv(channels, channels, (3, 3), kernel_init=ZEROS, rngs=rngs)
        self.joins = inward != channels
        if self.joins:
            self.shortcut = nnx.Conv(inward, channels, (1, 1), rngs=rngs)
        if heads:
            self.attention_norm = Norm(channels, rngs=rngs)
            self.qkv = nnx.Linear(channels, 3 * channels, rngs=rngs)
            self.out = nnx.Linear(channels, channels, kernel_init=ZEROS, rngs=rngs)

    def __call__(self, x: Array, c: Array, key: Array | None) -> Array:
        """``[B, H', W', channels]``."""
        h = from_input(self._inward)(x)
        scale, shift = jnp.split(self.modulation(c)[:, None, None], 2, -1)
        if self.double_norm:
            scale, shift = pixel_norm(scale), pixel_norm(shift)
        else:
            scale = 1.0 + scale
        h = from_input(self._outward)(h, scale, shift, key)
        x = resampled(x, self.factor)
        x = self.shortcut(x) if self.joins else x
        x = (x + h) * HALF
        return (x + self._mixed(x)) * HALF if self.heads else x

    def _inward(self, x: Array) -> Array:
        return self.first(resampled(jax.nn.silu(self.norm(x)), self.factor))

    def _outward(self, h: Array, scale: Array, shift: Array, key: Array | None):
        h = jax.nn.silu(self.inner_norm(h) * scale + shift)
        return self.second(self.dropout(h, rngs=key, deterministic=key is None))

    def _mixed(self, x: Array) -> Array:
        """Self-attention over the pixels; queries and keys are RMS-normalised."""
        b, height, width, channels = x.shape
        h = from_input(lambda x: self.qkv(self.attention_norm(x)))(x)
        h = h.reshape(b, height * width, 3, self.heads, channels // self.heads)
        # A moved axis would be copied; the derivative of a split is one concatenation.
        q, k, v = (part[:, :, 0] for part in jnp.split(h, 3, 2))
        mixed = attention(rms_norm(q), rms_norm(k), v)
        return self.out(mixed.reshape(x.shape))


class UNet(nnx.Module):
    """The module; `unet` makes the network. See there for the arguments."""

    def __init__(
        self,
        sample_shape: tuple[int, int, int],
        *,
        channels: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention_sizes: tuple[int, ...],
        head_size: int,
        embedding: int,
        dropout: float,
        double_norm: bool,
        frequencies: Frequencies,
        conditions: dict[str, Any],
        second_time: bool,
        guidance: Frequencies | None,
        rngs: nnx.Rngs,
    ):
        size, _, own = sample_shape
        self.time = TimeEmbedding(embedding, frequencies, rngs=rngs)
        if second_time:
            self.second = TimeEmbedding(embedding, frequencies, zero=True, rngs=rngs)
        if guidance is not None:
            self.guidance = GuidanceEmbedding(embedding, guidance, rngs=rngs)
        self.conditions = Conditions(embedding, **conditions, rngs=rngs)

        def block(name: str, a: int, b: int, attend: bool, factor: int = 1) -> str:
            made = Block(
                a,
                b,
                embedding,
                heads=max(1, b // head_size) if attend else 0,
                factor=factor,
                dropout=dropout,
                double_norm=double_norm,
                rngs=rngs,
            )
            setattr(self, name, made)
            return name

        width = channels * multipliers[0]
        self.inward = nnx.Conv(
            own + self.conditions.image_channels, width, (3, 3), rngs=rngs
        )
        skips, down, up = [width], [], []
        for level, factor in enumerate(multipliers):
            attend = size in attention_sizes
            if level:
                size //= 2
                attend = size in attention_sizes
                down.append(block(f"down_{level}", width, width, False, -2))
                skips.append(width)
            for i in range(blocks):
                down.append(block(f"in_{level}_{i}", width, channels * factor, attend))
                width = channels * factor
                skips.append(width)
        middle = [
            block("middle_0", width, width, True),
            block("middle_1", width, width, False),
        ]
        for level, factor in reversed(list(enumerate(multipliers))):
            for i in range(blocks + 1):
                attend = size in attention_sizes and i == blocks
                name = f"out_{level}_{i}"
                up.append(
                    (block(name, width + skips.pop(), channels * factor, attend), True)
                )
                width = channels * factor
            if level:
                size *= 2
                up.append((block(f"up_{level}", width, width, False, 2), False))
        self.down, self.middle, self.up = tuple(down), tuple(middle), tuple(up)
        self.norm = Norm(width, rngs=rngs)
        self.outward = nnx.Conv(width, own, (3, 3), kernel_init=ZEROS, rngs=rngs)

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
        """Prediction, shape of ``x``; with ``taps`` also the features of every level.

        Args:
          x: state ``[B, H, W, C]``.
          t: time ``[B]``.
          cond: see `Conditions`.
          s: code of the second time ``[B]``.
          w: guidance scale ``[B]``; None adds nothing.
          taps: whether to return ``(out, tuple of [B, h, w, c])``: the encoder's last
            features of every level, the middle at the end.
          rng: dropout key.
        """
        vector, image = self.conditions(cond, x)
        h = self.inward(jnp.concatenate([x, *image], -1))
        c = conditioning(self, t, s, w, vector, h.dtype)
        count = 0

        def run(name: str, h: Array) -> Array:
            nonlocal count
            count += 1
            key = None if rng is None else jax.random.fold_in(rng, count)
            return getattr(self, name)(h, c, key)

        skips, features = [h], []
        for name in self.down:
            if name.startswith("down_"):
                features.append(h)
            h = run(name, h)
            skips.append(h)
        for name in self.middle:
            h = run(name, h)
        features.append(h)
        for name, joins in self.up:
            h = run(name, jnp.concatenate([h, skips.pop()], -1) if joins else h)
        out = from_input(lambda h: self.outward(jax.nn.silu(self.norm(h))))(h)
        return (out, tuple(features)) if taps else out


@words.network
def unet(
    sample_shape: tuple[int, int, int],
    *,
    channels: int = 128,
    multipliers: tuple[int, ...] = (2, 2, 2),
    blocks: int = 4,
    attention_sizes: tuple[int, ...] = (16,),
    head_size: int = 64,
    embedding: int | None = None,
    dropout: float = 0.0,
    path: Path | None = None,
    prediction: Prediction | str = "velocity",
    num_classes: int | None = None,
    cond_features: int | None = None,
    image_channels: int | None = None,
    augment_features: int | None = None,
    second_time: bool = False,
    time_code: str = "gap",
    guidance: Frequencies | None = None,
    double_norm: bool = False,
    frequencies: Frequencies = Frequencies(),
    dtype: Any = None,
    name: str = "unet",
) -> Network:
    """A UNet as a network; the defaults are EDM's for CIFAR-10, 60 M parameters.

    Args:
      sample_shape: ``(S, S, C)``; ``S`` divisible by 2 for every level but the first.
      channels: base channels.
      multipliers: channels of every level over ``channels``.
      blocks: residual blocks of a level on the way in; one more on the way out.
      attention_sizes: image sizes at which blocks attend.
      head_size: channels of an attention head.
      embedding: features of the conditioning vector; default ``4 * channels``.
      dropout: rate inside the blocks, in ``[0, 1)``.
      path: path on which it predicts; default `paths.linear`.
      prediction: kind of its prediction.
      num_classes: takes labels ``[B]``; the null class is one more.
      cond_features: takes embeddings ``[B, d]`` instead; zero is the null condition.
      image_channels: takes images ``[B, h, w, c]`` too, see `Conditions`.
      augment_features: takes the numbers of an augmentation too, see `Conditions`; 9
        for all of EDM's.
      second_time: whether it takes a second time.
      time_code: see `functionalize`.
      guidance: takes a guidance scale beside the condition (see `binding.told`):
        frequencies of its embedding, which is zero at first. LCM's are ``(0.1, 1000.0,
        128)``, SANA-Sprint's ``(1e-5, 0.1, 128)``.
      double_norm: sCM's adaptive double normalisation; for networks trained from
        scratch.
      frequencies: of the time embeddings.
      dtype: compute dtype, see `functionalize`.
      name: how errors call it.

    Returns:
      The network: ``jvp``, ``taps`` (the features of every level on the way in, the
      middle last), and ``second_time``, ``null``, ``guidance``, ``dropout`` as asked
      for. It predicts 0 at first.

    Raises:
      ValueError: on sizes that do not divide.

    References:
      Song et al., Score-Based Generative Modeling through SDEs, 2020, arXiv:2011.13456,
        appendix H (DDPM++).
      Karras et al., Elucidating the Design Space of Diffusion Models, 2022,
        arXiv:2206.00364, table 7.
    """
    height, width, _ = sample_shape
    if height != width or height % 2 ** (len(multipliers) - 1) or blocks < 1:
        raise ValueError(
            f"unet wants square images whose side {len(multipliers)} levels halve "
            f"evenly, and at least one block; got {sample_shape}, multipliers "
            f"{multipliers}, blocks {blocks}"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    path = paths.linear() if path is None else path
    conditions = {
        "num_classes": num_classes,
        "features": cond_features,
        "image_channels": image_channels,
        "augment_features": augment_features,
    }
    null = null_conditions(**conditions)
    return functionalize(
        lambda rngs: UNet(
            sample_shape,
            channels=channels,
            multipliers=tuple(multipliers),
            blocks=blocks,
            attention_sizes=tuple(attention_sizes),
            head_size=head_size,
            embedding=embedding or 4 * channels,
            dropout=dropout,
            double_norm=double_norm,
            frequencies=Frequencies(*frequencies),
            conditions=conditions,
            second_time=second_time,
            guidance=None if guidance is None else Frequencies(*guidance),
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
