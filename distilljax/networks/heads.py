"""Small networks beside others: discriminator and policy heads, learned weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distilljax.core.binding import Network
from distilljax.diffusion.paths import Path
from distilljax.networks.adapter import cast, pure, times_over, widen
from distilljax.networks.bottleneck_head import BottleneckHead
from distilljax.networks.conditions import vector_of
from distilljax.networks.embeddings import (
    ConditionEmbedding,
    Frequencies,
    TimeEmbedding,
    log_clock,
    sinusoids,
)
from distilljax.networks.norms import layer_norm
from distilljax.networks.patch_heads import PatchHeads
from distilljax.runtime import words
from distilljax.runtime.errors import unknown

Array = jax.Array
KINDS = ("bottleneck", "pooled", "patches", "projected")


class Head(nnx.Module):
    """Logits of intermediate features, time and condition.

    Args:
      features: last sizes of the features.
      width: of its hidden layers.
      layers: hidden layers after the first projection.
      frequencies: of the time embedding.
      second_time: whether it is told a second time.
      num_classes: see `ConditionEmbedding`.
      cond_features: see `ConditionEmbedding`.
      rngs: initialisation keys.
    """

    def __init__(
        self,
        features: Sequence[int],
        *,
        width: int,
        layers: int,
        frequencies: Frequencies,
        second_time: bool,
        num_classes: int | None,
        cond_features: int | None,
        rngs: nnx.Rngs,
    ):
        self.inward = nnx.Linear(sum(features), width, rngs=rngs)
        self.time = TimeEmbedding(width, frequencies, rngs=rngs)
        self.condition = ConditionEmbedding(
            width,
            num_classes=num_classes,
            features=cond_features,
            std=0.3,
            rngs=rngs,
        )
        for i in range(layers):
            setattr(self, f"layer_{i}", nnx.Linear(width, width, rngs=rngs))
        self.outward = nnx.Linear(width, 1, rngs=rngs)
        self.layers = layers
        if second_time:
            self.told = TimeEmbedding(width, frequencies, rngs=rngs)

    def __call__(
        self,
        features: Any,
        t: Array,
        cond: Array | None = None,
        s: Array | None = None,
    ) -> Array:
        """Logits ``[B]``.

        Args:
          features: arrays ``[B, ..., d]``; axes in between are averaged over.
          t: time ``[B]``.
          cond: see `ConditionEmbedding`.
          s: the second time ``[B]``, of a head that is told one.
        """
        flat = [_pooled(leaf) for leaf in jax.tree.leaves(features)]
        h = self.inward(jnp.concatenate([layer_norm(leaf) for leaf in flat], -1))
        h = h + self.time(t, h.dtype) + self.condition(cond)
        if s is not None:
            h = h + self.told(s, h.dtype)
        for i in range(self.layers):
            h = getattr(self, f"layer_{i}")(jax.nn.leaky_relu(h, 0.2))
        return self.outward(jax.nn.leaky_relu(h, 0.2))[:, 0]


def _pooled(leaf: Array) -> Array:
    return leaf.mean(tuple(range(1, leaf.ndim - 1))) if leaf.ndim > 2 else leaf


@words.network
def head(
    features_shape: Any,
    *,
    kind: str = "pooled",
    product: bool = False,
    num_classes: int | None = None,
    cond_features: int | None = None,
    width: int | None = None,
    layers: int = 1,
    frequencies: Frequencies = Frequencies(),
    second_time: bool = False,
    dtype: Any = None,
    name: str = "head",
) -> Network:
    """A discriminator head on the taps of another network.

    | kind | logits | as in |
    |---|---|---|
    | `bottleneck` | one, by convolutions on the last tap, no time, no label | DMD2 |
    | `pooled` | one, of all taps averaged over their positions | - |
    | `patches` | one per position of every tap, by a head per tap | LADD, SANA-Sprint |
    | `projected` | the same on taps mixed by fixed random projections | Projected GAN |

    `pooled` is the house's small head; of its features' places nothing is left, and it
    is told time, label and, where a method asks, the time from which a sample was made.

    GAN losses average the logits of a sample, so that taps count by their positions (as
    in the public codes, which join the logits of all heads). Those of LADD and
    SANA-Sprint are StyleGAN-T's heads: a linear layer, one residual convolution over
    nine tokens, and with a condition an inner product. Here a tap with a grid of
    positions is convolved along it, norms are per position where theirs run over the
    batch, and there is no spectral norm, whose running vector would be state.

    Args:
      features_shape: the taps' shapes: a tree of arrays or ShapeDtypeStructs
        ``[B, ..., d]``, as from `taps_shape`.
      kind: see above.
      product: whether the condition enters the logits of a position by an inner product
        of its embedding with the hidden features there, over ``sqrt(width)``; otherwise
        the embedding is added to the hidden features. Not for a single logit.
      num_classes: takes labels ``[B]``, the null class included.
      cond_features: takes embeddings ``[B, d]`` instead.
      width: of its hidden layers; default 128, and the tap's own for ``bottleneck``.
      layers: hidden layers after the first projection; ``bottleneck`` has as many as
        the positions take.
      frequencies: of the time embedding, which ``bottleneck`` has not.
      second_time: whether it is told a second time, that from which a sample was made
        (``told_start`` of `methods.ladd` and `methods.dmd2`); not for ``bottleneck``.
      dtype: compute dtype, see `functionalize`.
      name: how errors call it.

    Returns:
      A network without path whose function ``logits(features, t, cond, s)`` gives
      ``[B]`` or ``[B, positions of all taps]`` in float32; ``t`` and the second time
      ``s``, if it has one, are times over the path's ``t_max``. Of a dict of conditions
      it sees the vector.

    Raises:
      ValueError: on an unknown kind, or taps that the kind does not fit.

    References:
      Miyato and Koyama, cGANs with Projection Discriminator, 2018, arXiv:1802.05637.
      Sauer et al., Projected GANs Converge Faster, 2021, arXiv:2111.01007.
      Sauer et al., StyleGAN-T, 2023, arXiv:2301.09515.
    """
    shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(features_shape)]
    if not shapes:
        raise ValueError(
            "features_shape must hold at least one shape, got none; pass taps_shape("
            "network, sample_shape) of a network with taps"
        )
    if kind not in KINDS:
        raise ValueError(unknown("kind of head", kind, KINDS))
    if product and kind in ("pooled", "bottleneck"):
        raise ValueError(
            f"product=True is for heads with a logit per position, got kind={kind!r}; "
            "use kind='patches' or 'projected'"
        )
    if second_time and kind == "bottleneck":
        raise ValueError(
            "kind='bottleneck' is told no times, and second_time=True wants a head "
            "that is; use kind='pooled', 'patches' or 'projected'"
        )
    common: dict[str, Any] = {
        "width": 128 if width is None else width,
        "layers": layers,
        "frequencies": Frequencies(*frequencies),
        "second_time": second_time,
        "num_classes": num_classes,
        "cond_features": cond_features,
    }

    def build(rngs: nnx.Rngs) -> nnx.Module:
        if kind == "bottleneck":
            return BottleneckHead(shapes[-1], width=width, rngs=rngs)
        if kind == "pooled":
            return Head([shape[-1] for shape in shapes], **common, rngs=rngs)
        projected = kind == "projected"
        return PatchHeads(
            shapes, projected=projected, product=product, **common, rngs=rngs
        )

    init, call, _ = pure(build, name=name)

    def logits(
        params: Any, features: Any, t: Any, cond: Any = None, s: Any = None
    ) -> Array:
        if second_time != (s is not None):
            raise ValueError(
                f"network {name!r} has a second time and was called without s"
                if second_time
                else f"network {name!r} has no second time; call it without s"
            )
        first = jax.tree.leaves(features)[0]
        t = times_over(first, t, None)
        s = None if s is None else times_over(first, s, None)
        cond = vector_of(cond, num_classes, cond_features)
        params, features, cond = cast((params, features, cond), dtype)
        return widen(call(params, features, t, cond, s))

    return Network(
        name,
        None,
        init,
        capabilities=frozenset({"jvp", *(("second_time",) if second_time else ())}),
        functions={"logits": logits},
        num_classes=num_classes,
    )


def taps_shape(
    network: Network, sample_shape: tuple[int, ...], cond: Any = None
) -> Any:
    """Shapes of a network's taps at batch 1, without running it.

    Args:
      network: with the capability ``taps``.
      sample_shape: shape of a sample.
      cond: a condition at batch 1, if the taps depend on its presence.

    Returns:
      The tree of ShapeDtypeStructs that `head` takes.

    Raises:
      ValueError: if the network has no taps.
    """
    if network.apply is None or "taps" not in network.capabilities:
        raise ValueError(
            f"network {network.name!r} has no taps, it has "
            f"{sorted(network.capabilities)}; build it with the capability 'taps'"
        )
    apply = network.apply

    def run(key: Array) -> Any:
        x = jnp.zeros((1, *sample_shape))
        return apply(network.init(key), x, jnp.zeros((1,)), cond, taps=True)[1]

    return jax.eval_shape(run, jax.random.key(0))


@words.network
def policy(
    backbone: Network,
    sample_shape: tuple[int, ...],
    *,
    components: int = 8,
    mixture: bool = True,
    spread: float = 0.1,
    name: str = "policy",
) -> Network:
    """A network that also emits several predictions, for `methods.pi_flow`.

    Linear heads on the last tap. Its parameters are the backbone's and one more entry
    ``policy``, so that it starts from a teacher with the backbone's parameters.

    Args:
      backbone: network with taps.
      sample_shape: shape of a sample; its last axis shares the mixture's weights.
      components: ``K``, components of a mixture, estimates on a grid or coefficients of
        a polynomial.
      mixture: whether the predictions are those of a Gaussian mixture, with weights and
        a standard deviation; otherwise they stand alone (pi-Flow's grid and polynomial
        policies).
      spread: standard deviation of what is added to the prediction at first, per
        component; with 0 all components of a mixture stay equal.
      name: how errors call it.

    Returns:
      The backbone with the function ``policy(x, t, cond)``, which gives predictions
      ``[B, K, *sample_shape]`` of the backbone's kind, their common log standard
      deviation ``[B]`` and logits ``[B, K, *sample_shape[:-1], 1]``; both None without
      a mixture.
    """
    features = _last(taps_shape(backbone, sample_shape)).size
    size, places = math.prod(sample_shape), math.prod(sample_shape[:-1])
    widths = {"predictions": components * size}
    if mixture:
        widths |= {"logits": components * places, "log_std": 1}

    def init(key: Array) -> Any:
        own, draw = jax.random.split(key)
        scale = spread / math.sqrt(2.0 * features)
        heads = {k: _zero_linear(features, n) for k, n in widths.items()}
        w, b = jax.random.split(draw)
        heads["predictions"] = {
            "w": scale * jax.random.normal(w, (features, widths["predictions"])),
            "b": spread / math.sqrt(2.0) * jax.random.normal(b, (size * components,)),
        }
        return {**backbone.init(own), "policy": heads}

    def bare(params: Any) -> Any:
        return {k: v for k, v in params.items() if k != "policy"}

    def apply(params: Any, *args: Any, **options: Any) -> Any:
        assert backbone.apply is not None
        return backbone.apply(bare(params), *args, **options)

    def emit(
        params: Any, x: Array, t: Array, cond: Any = None, rng: Array | None = None
    ) -> Any:
        random = {} if rng is None else {"rng": rng}
        out, taps = apply(params, x, t, cond, taps=True, **random)
        last = _last(taps)
        h = layer_norm(last.reshape(last.shape[0], -1))
        found = {k: h @ p["w"] + p["b"] for k, p in params["policy"].items()}
        lead = (x.shape[0], components)
        added = found["predictions"].reshape(*lead, *x.shape[1:])
        if not mixture:
            return widen(out[:, None] + added), None, None
        logits = found["logits"].reshape(*lead, *x.shape[1:-1], 1)
        return widen((out[:, None] + added, found["log_std"][:, 0], logits))

    return dataclasses.replace(
        backbone,
        name=name,
        apply=apply,
        init=init,
        functions={**backbone.functions, "policy": emit},
    )


def _last(taps: Any) -> Any:
    return jax.tree.leaves(taps)[-1]


def _zero_linear(size_in: int, size_out: int) -> dict[str, Array]:
    return {"w": jnp.zeros((size_in, size_out)), "b": jnp.zeros((size_out,))}


class LogWeight(nnx.Module):
    """One linear layer, zero at first, on the sinusoids of a time."""

    def __init__(self, frequencies: Frequencies, *, rngs: nnx.Rngs):
        self.frequencies = frequencies
        self.linear = nnx.Linear(
            2 * frequencies.count, 1, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(self, t: Array) -> Array:
        """Logarithm of the weight, shape of ``t``."""
        return self.linear(sinusoids(t, self.frequencies))[..., 0]


@words.network
def log_weight(
    *,
    path: Path | None = None,
    frequencies: Frequencies = Frequencies(),
    name: str = "log_weight",
) -> Network:
    """The learned loss weight ``w(t)`` of EDM2 and sCM, 0 at first.

    Args:
      path: path in whose clock ``t`` comes; far clocks are taken logarithmically.
      frequencies: of the time embedding.
      name: how errors call it.

    Returns:
      A network whose function ``log_weight(t)`` gives float32 of the shape of ``t``.

    References:
      Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models,
        2023, arXiv:2312.02696, equation 21.
    """
    clock: Callable[[Array], Array] | None = None if path is None else log_clock(path)
    bands = Frequencies(*frequencies)
    init, call, _ = pure(lambda rngs: LogWeight(bands, rngs=rngs), name=name)

    def value(params: Any, t: Any) -> Array:
        t = jnp.asarray(t, jnp.promote_types(jnp.result_type(t), jnp.float32))
        return widen(call(params, t if clock is None else clock(t)))

    return Network(name, None, init, functions={"log_weight": value})
