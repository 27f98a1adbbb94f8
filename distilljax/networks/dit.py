"""A diffusion transformer (DiT) for images and latents, made for `jax.jvp`.

Patches with fixed positions, blocks modulated by time and condition, one scan over the
blocks, so that 28 of them compile like one. What continuous-time losses want is on by
default: normalised queries and keys, and times of moderate frequency.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distilljax.core.binding import Network
from distilljax.diffusion import paths
from distilljax.diffusion.paths import Path
from distilljax.diffusion.predictions import Prediction
from distilljax.networks.activations import from_input
from distilljax.networks.adapter import capabilities_of, functionalize
from distilljax.networks.attention import IMPLEMENTATIONS, attention
from distilljax.networks.conditions import Conditions, null_conditions
from distilljax.networks.embeddings import (
    Frequencies,
    GuidanceEmbedding,
    TimeEmbedding,
    conditioning,
    log_clock,
)
from distilljax.networks.layout import rows_first
from distilljax.networks.norms import layer_norm, pixel_norm, rms_norm
from distilljax.runtime import words
from distilljax.runtime.axes import with_parameters
from distilljax.runtime.errors import unknown

Array = jax.Array
Parts = tuple[tuple[Callable[[Array], Array], Array], ...]
ZEROS = nnx.initializers.zeros

REMAT: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# Depth, width and heads of Peebles and Xie 2022, table 1.
SIZES = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}


def positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed sine-cosine table ``[rows * columns, width]``, half of it for each axis.

    Args:
      rows: patches along the height.
      columns: patches along the width.
      width: features, divisible by 4.
    """
    bands = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    angles = grid.reshape(-1, 2, 1) * bands
    table = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    return table.reshape(rows * columns, width).astype(np.float32)


class Modulation(nnx.Module):
    """``LN(h) (1 + scale) + shift`` and gates out of the conditioning vector.

    With ``double_norm``: ``LN(h) pnorm(scale) + pnorm(shift)``, the adaptive double
    normalisation of sCM (section 4.1), which keeps the tangent in time bounded.

    Args:
      width: features of the stream.
      parts: scale and shift pairs.
      gates: gates beside them.
      double_norm: see above.
      rngs: initialisation keys.
    """

    def __init__(
        self, width: int, parts: int, gates: int, double_norm: bool, *, rngs: nnx.Rngs
    ):
        self.parts, self.gates, self.double_norm = parts, gates, double_norm
        if double_norm:
            self.pair = nnx.Linear(width, 2 * parts * width, rngs=rngs)
            if gates:
                self.gate = nnx.Linear(
                    width, gates * width, kernel_init=ZEROS, rngs=rngs
                )
        else:
            self.linear = nnx.Linear(
                width, (2 * parts + gates) * width, kernel_init=ZEROS, rngs=rngs
            )

    def numbers(self, c: Array) -> Array:
        """All scales, shifts and gates ``[B, (2 parts + gates) width]``."""
        if not self.double_norm:
            return self.linear(c)
        pairs = self.pair(c)
        return jnp.concatenate([pairs, self.gate(c)], -1) if self.gates else pairs

    def apply(self, numbers: Array) -> Parts:
        """A function of the stream and its gate (1 without gates) per part."""
        count = 2 * self.parts
        split = jnp.split(numbers[:, None], count + self.gates, -1)
        pairs, gates = split[:count], split[count:]
        base = 0.0 if self.double_norm else 1.0
        if self.double_norm:
            pairs = [pixel_norm(value) for value in pairs]

        def normed(scale: Array, shift: Array) -> Callable[[Array], Array]:
            return lambda h: layer_norm(h) * (base + scale) + shift

        found = [normed(*pairs[2 * i : 2 * i + 2]) for i in range(self.parts)]
        gates = gates if len(gates) else [jnp.ones((), numbers.dtype)] * self.parts
        return tuple(zip(found, gates, strict=True))


class Block(nnx.Module):
    """Gated self-attention and MLP, both modulated (adaLN-zero).

    Args:
      width: features of the stream.
      heads: heads of the attention, a divisor of the width.
      hidden: features inside the MLP.
      qk_norm: whether queries and keys are RMS-normalised, with learned scales.
      double_norm: see `Modulation`.
      attend: attention on ``[B, N, H, D]``.
      keep: what is done to a function of a norm or an activation and a linear layer,
        see `from_input`.
      rngs: initialisation keys.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        qk_norm: bool,
        double_norm: bool,
        attend: Callable[[Array, Array, Array], Array],
        keep: Callable[[Callable[[Array], Array]], Callable[[Array], Array]],
        rngs: nnx.Rngs,
    ):
        self.heads, self.qk_norm = heads, qk_norm
        self.attend, self.keep = attend, keep
        self.modulation = Modulation(width, 2, 2, double_norm, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        if qk_norm:
            self.q_scale = nnx.Param(jnp.ones((width // heads,)))
            self.k_scale = nnx.Param(jnp.ones((width // heads,)))
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, h: Array, numbers: Array) -> Array:
        """New stream ``[B, N, width]``.

        Args:
          h: stream.
          numbers: of its modulation.
        """
        (first, gate), (second, other_gate) = self.modulation.apply(numbers)
        qkv = self.keep(lambda h: rows_first(self.qkv(first(h))))(h)
        h = rows_first(h + gate * self._mixed(qkv))
        inner = self.keep(lambda h: rows_first(self.up(second(h))))(h)
        gelu = functools.partial(jax.nn.gelu, approximate=True)
        added = self.keep(lambda inner: self.down(gelu(inner)))(inner)
        return rows_first(h + other_gate * added)

    def _mixed(self, qkv: Array) -> Array:
        # Heads first, so that a mesh can split the features between whole heads.
        width = qkv.shape[-1] // 3
        parts = qkv.reshape(*qkv.shape[:2], self.heads, 3, width // self.heads)
        # A moved axis would be copied; the derivative of a split is one concatenation.
        q, k, v = (part[:, :, :, 0] for part in jnp.split(parts, 3, 3))
        if self.qk_norm:
            q = rms_norm(q) * self.q_scale.get_value()
            k = rms_norm(k) * self.k_scale.get_value()
        return self.out(self.attend(q, k, v).reshape(*qkv.shape[:2], width))


class DiT(nnx.Module):
    """The module; `dit` makes the network. See there for the arguments."""

    def __init__(
        self,
        sample_shape: tuple[int, int, int],
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        qk_norm: bool,
        double_norm: bool,
        frequencies: Frequencies,
        conditions: dict[str, Any],
        second_time: bool,
        guidance: Frequencies | None,
        tap_layers: tuple[int, ...],
        remat: str,
        attend: Callable[[Array, Array, Array], Array],
        rngs: nnx.Rngs,
    ):
        rows, columns, channels = sample_shape
        self.patch, self.depth = patch, depth
        self.tap_layers, self.remat = tap_layers, remat
        self.grid = (rows // patch, columns // patch)
        self.time = TimeEmbedding(width, frequencies, rngs=rngs)
        if second_time:
            self.second = TimeEmbedding(width, frequencies, zero=True, rngs=rngs)
        if guidance is not None:
            self.guidance = GuidanceEmbedding(width, guidance, rngs=rngs)
        self.conditions = Conditions(width, **conditions, rngs=rngs)
        inward = channels + self.conditions.image_channels
        self.inward = nnx.Linear(patch * patch * inward, width, rngs=rngs)

        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(key: Array) -> Block:
            return Block(
                width,
                heads,
                hidden,
                qk_norm=qk_norm,
                double_norm=double_norm,
                attend=attend,
                # What is remembered otherwise follows the policy of the whole block.
                keep=from_input if remat == "none" else lambda fn: fn,
                rngs=nnx.Rngs(key),
            )

        self.blocks = stack(jax.random.split(rngs.params(), depth))
        self.last = Modulation(width, 1, 0, double_norm, rngs=rngs)
        self.outward = nnx.Linear(
            width, patch * patch * channels, kernel_init=ZEROS, rngs=rngs
        )

    def _patches(self, x: Array) -> Array:
        (rows, columns), p = self.grid, self.patch
        x = x.reshape(x.shape[0], rows, p, columns, p, x.shape[-1])
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows * columns, -1)

    def _image(self, tokens: Array, shape: tuple[int, ...]) -> Array:
        (rows, columns), p = self.grid, self.patch
        x = tokens.reshape(shape[0], rows, columns, p, p, shape[-1])
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)

    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Any = None,
        s: Array | None = None,
        *,
        w: Array | None = None,
        taps: bool = False,
    ) -> Any:
        """Prediction, shape of ``x``; with ``taps`` also the stream after some blocks.

        Args:
          x: state ``[B, H, W, C]``.
          t: time ``[B]``.
          cond: see `Conditions`.
          s: code of the second time ``[B]``.
          w: guidance scale ``[B]``; None adds nothing.
          taps: whether to return ``(out, tuple of [B, H/p, W/p, width])``.
        """
        vector, image = self.conditions(cond, x)
        h = self.inward(self._patches(jnp.concatenate([x, *image], -1)))
        h = rows_first(h + positions(*self.grid, h.shape[-1]).astype(h.dtype))
        c = conditioning(self, t, s, w, vector, h.dtype)
        # A third of the parameters acts on the conditioning alone: in all blocks at
        # once, so that neither they nor their gradients pass through the scan. Each has
        # a vector of its own, for the kernels of a shared one would be transposed.
        own, kernels = nnx.split(self.blocks.modulation)
        vectors = jnp.broadcast_to(with_parameters(c), (self.depth, *c.shape))
        make = jax.vmap(lambda kernel, c: nnx.merge(own, kernel).numbers(c))
        # Over a mesh the vectors move, and what is made of them: no kernel does.
        numbers = with_parameters(make(kernels, vectors), 1, features=True)
        graph, used, stacked = nnx.split(
            self.blocks, nnx.PathContains("modulation"), ...
        )
        used = jax.tree.map(jax.typeof, used)

        def block(h: Array, given: Any) -> tuple[Array, None]:
            params, numbers = given
            return nnx.merge(graph, used, params)(h, numbers), None

        policy = REMAT[self.remat]
        step = block if policy is None else jax.checkpoint(block, policy=policy)
        features, begin = [], 0
        # One scan; with taps one up to each of them, so that no other state is kept.
        for end in sorted({*(n + 1 for n in self.tap_layers if taps), self.depth}):
            part = jax.tree.map(
                lambda leaf, a=begin, b=end: leaf[a:b], (stacked, numbers)
            )
            h, _ = jax.lax.scan(step, h, part)
            features.append(h.reshape(h.shape[0], *self.grid, -1))
            begin = end
        if self.depth - 1 not in self.tap_layers:
            features.pop()
        ((modulate, _),) = self.last.apply(self.last.numbers(c))
        out = self._image(self.outward(modulate(h)), x.shape)
        return (out, tuple(features)) if taps else out


@words.network
def dit(
    sample_shape: tuple[int, int, int],
    *,
    size: str | None = None,
    patch: int = 2,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    mlp_ratio: float = 4.0,
    path: Path | None = None,
    prediction: Prediction | str = "velocity",
    num_classes: int | None = None,
    cond_features: int | None = None,
    image_channels: int | None = None,
    second_time: bool = False,
    time_code: str = "gap",
    guidance: Frequencies | None = None,
    qk_norm: bool = True,
    double_norm: bool = False,
    frequencies: Frequencies = Frequencies(),
    tap_layers: tuple[int, ...] | None = None,
    remat: str = "none",
    attention_kind: str = "auto",
    dtype: Any = None,
    name: str = "dit",
) -> Network:
    """A diffusion transformer as a network.

    Args:
      sample_shape: ``(H, W, C)``, height and width divisible by ``patch``.
      size: ``S``, ``B``, ``L`` or ``XL``, in place of width, depth and heads.
      patch: side of a patch.
      width: features of the stream, divisible by ``heads`` and by 4.
      depth: number of blocks.
      heads: attention heads.
      mlp_ratio: features inside the MLP over ``width``.
      path: path on which it predicts; default `paths.linear`.
      prediction: kind of its prediction.
      num_classes: takes labels ``[B]``; the null class is one more.
      cond_features: takes embeddings ``[B, d]`` instead; zero is the null condition.
      image_channels: takes images ``[B, h, w, c]`` too, see `Conditions`.
      second_time: whether it takes a second time.
      time_code: see `functionalize`.
      guidance: takes a guidance scale beside the condition (see `binding.told`):
        frequencies of its embedding, which is zero at first. LCM's are ``(0.1, 1000.0,
        128)``, SANA-Sprint's ``(1e-5, 0.1, 128)``.
      qk_norm: normalises queries and keys; off only for foreign weights.
      double_norm: sCM's adaptive double normalisation in place of adaLN's scale; for
        networks trained from scratch.
      frequencies: of the time embeddings.
      tap_layers: blocks whose output are the taps, counted from 0; default four, evenly
        spaced, the last block among them.
      remat: what the backward pass computes again: ``none``; ``dots``, all but matrix
        products; ``full``, every block.
      attention_kind: see `distilljax.networks.attention`.
      dtype: compute dtype, see `functionalize`; bfloat16 with float32 parameters is
        usual on accelerators.
      name: how errors call it.

    Returns:
      The network: ``jvp``, ``taps``, and ``second_time``, ``null``, ``guidance`` as
      asked for. It predicts 0 at first.

    Raises:
      ValueError: on sizes that do not divide, or an unknown size, remat or attention.

    References:
      Peebles and Xie, Scalable Diffusion Models with Transformers, 2022,
        arXiv:2212.09748.
      Lu and Song, sCM, 2024, arXiv:2410.11081, section 4.1.
    """
    if size is not None:
        if size not in SIZES:
            raise ValueError(unknown("size", size, SIZES))
        width, depth, heads = (SIZES[size][k] for k in ("width", "depth", "heads"))
    if remat not in REMAT:
        raise ValueError(unknown("remat", remat, REMAT))
    kinds = ("auto", *IMPLEMENTATIONS)
    if attention_kind not in kinds:
        raise ValueError(unknown("attention_kind", attention_kind, kinds))
    rows, columns, _ = sample_shape
    if rows % patch or columns % patch or width % heads or width % 4 or depth < 1:
        raise ValueError(
            f"patch must divide height and width, and heads and 4 the width; got patch "
            f"{patch} of {sample_shape}, width {width}, heads {heads}, depth {depth}"
        )
    if tap_layers is None:
        tap_layers = tuple(sorted({depth * i // 4 - 1 for i in (1, 2, 3, 4)} - {-1}))
    if any(not 0 <= layer < depth for layer in tap_layers):
        raise ValueError(f"tap_layers must lie in 0 .. {depth - 1}, got {tap_layers}")
    path = paths.linear() if path is None else path
    conditions = {
        "num_classes": num_classes,
        "features": cond_features,
        "image_channels": image_channels,
    }
    null = null_conditions(**conditions)
    return functionalize(
        lambda rngs: DiT(
            sample_shape,
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
            hidden=int(mlp_ratio * width),
            qk_norm=qk_norm,
            double_norm=double_norm,
            frequencies=Frequencies(*frequencies),
            conditions=conditions,
            second_time=second_time,
            guidance=None if guidance is None else Frequencies(*guidance),
            tap_layers=tuple(sorted(tap_layers)),
            remat=remat,
            attend=functools.partial(attention, implementation=attention_kind),
            rngs=rngs,
        ),
        path=path,
        prediction=prediction,
        capabilities=capabilities_of(null, second_time, guidance),
        time_code=time_code,
        clock=log_clock(path),
        null=null,
        num_classes=num_classes if image_channels is None else None,
        dtype=dtype,
        name=name,
    )
