"""Inception-v3 as the Frechet inception distance uses it, in jax.

The network is that of the graph ``inception-2015-12-05``, with three departures from
torchvision's: average pools do not count the padding, the last block pools by maximum,
and the classifier has 1008 outputs. Names of weights are those of torchvision and
pytorch-fid. A block is data: branches, each a row of steps, joined along the channels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.evaluation.features.extractor import (
    Extracted,
    FeatureExtractor,
    fingerprint,
    need_images,
)
from distilljax.evaluation.features.weights import read_weights

Array = jax.Array
Weights = Mapping[str, Any]

SIZE = 299
CLASSES = 1008
_BATCH_NORM_EPS = 1e-3


@dataclasses.dataclass(frozen=True)
class Conv:
    """Convolution without bias, normalised by stored statistics, rectified."""

    name: str
    stride: int = 1
    same: bool = True


@dataclasses.dataclass(frozen=True)
class Pool:
    """A 3x3 pool; ``mean`` does not count the padding."""

    kind: str
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Fork:
    """Two convolutions of one input, joined along the channels."""

    first: Conv
    second: Conv


Step = Conv | Pool | Fork
Branches = tuple[tuple[Step, ...], ...]

_MEAN, _MAX, _DOWN = Pool("mean"), Pool("max"), Pool("max", 2)


def _row(*names: str) -> tuple[Conv, ...]:
    return tuple(Conv(name) for name in names)


def _last_blocks(pool: Pool) -> Branches:
    def fork(stem: str) -> Fork:
        return Fork(Conv(f"{stem}a"), Conv(f"{stem}b"))

    return (
        _row("branch1x1"),
        (Conv("branch3x3_1"), fork("branch3x3_2")),
        (*_row("branch3x3dbl_1", "branch3x3dbl_2"), fork("branch3x3dbl_3")),
        (pool, Conv("branch_pool")),
    )


_A: Branches = (
    _row("branch1x1"),
    _row("branch5x5_1", "branch5x5_2"),
    _row("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    (_MEAN, Conv("branch_pool")),
)
_B: Branches = (
    (Conv("branch3x3", 2, False),),
    (*_row("branch3x3dbl_1", "branch3x3dbl_2"), Conv("branch3x3dbl_3", 2, False)),
    (_DOWN,),
)
_C: Branches = (
    _row("branch1x1"),
    _row("branch7x7_1", "branch7x7_2", "branch7x7_3"),
    _row(*(f"branch7x7dbl_{i}" for i in range(1, 6))),
    (_MEAN, Conv("branch_pool")),
)
_D: Branches = (
    (Conv("branch3x3_1"), Conv("branch3x3_2", 2, False)),
    (
        *_row("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3"),
        Conv("branch7x7x3_4", 2, False),
    ),
    (_DOWN,),
)

# The whole network, block by block; the stem has one branch.
BLOCKS: dict[str, Branches] = {
    "": (
        (
            Conv("Conv2d_1a_3x3", 2, False),
            Conv("Conv2d_2a_3x3", 1, False),
            Conv("Conv2d_2b_3x3"),
            _DOWN,
            Conv("Conv2d_3b_1x1"),
            Conv("Conv2d_4a_3x3", 1, False),
            _DOWN,
        ),
    ),
    "Mixed_5b": _A,
    "Mixed_5c": _A,
    "Mixed_5d": _A,
    "Mixed_6a": _B,
    "Mixed_6b": _C,
    "Mixed_6c": _C,
    "Mixed_6d": _C,
    "Mixed_6e": _C,
    "Mixed_7a": _D,
    "Mixed_7b": _last_blocks(_MEAN),
    "Mixed_7c": _last_blocks(_MAX),
}


def _full(block: str, name: str) -> str:
    return f"{block}.{name}" if block else name


def keys() -> Iterator[str]:
    """Names of all weights that the network reads."""
    for block, branches in BLOCKS.items():
        for step in (step for branch in branches for step in branch):
            convs = {Conv: (step,), Fork: ()}.get(type(step), ())
            if isinstance(step, Fork):
                convs = (step.first, step.second)
            for conv in convs:
                stem = _full(block, conv.name)
                yield f"{stem}.conv.weight"
                for part in ("weight", "bias", "running_mean", "running_var"):
                    yield f"{stem}.bn.{part}"
    yield "fc.weight"
    yield "fc.bias"


def _convolve(weights: Weights, stem: str, conv: Conv, x: Array) -> Array:
    kernel = weights[f"{stem}.conv.weight"]
    height, width = kernel.shape[2:]
    padding = [(height // 2,) * 2, (width // 2,) * 2] if conv.same else "VALID"
    x = jax.lax.conv_general_dilated(
        x,
        kernel,
        (conv.stride,) * 2,
        padding,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    gamma, beta, mean, variance = (
        weights[f"{stem}.bn.{part}"]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / jnp.sqrt(variance + _BATCH_NORM_EPS)
    return jax.nn.relu((x - mean) * scale + beta)


def _pool(pool: Pool, x: Array) -> Array:
    window, strides = (1, 3, 3, 1), (1, pool.stride, pool.stride, 1)
    padding = [(0, 0), (1, 1), (1, 1), (0, 0)] if pool.stride == 1 else "VALID"
    if pool.kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)

    def total(v: Array) -> Array:
        return jax.lax.reduce_window(v, 0.0, jax.lax.add, window, strides, padding)

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def run_block(weights: Weights, block: str, x: Array) -> Array:
    """One block of the network.

    Args:
      weights: arrays by torchvision's names, kernels ``[out, in, h, w]``.
      block: a key of `BLOCKS`; ``""`` is the stem.
      x: ``[n, H, W, C]``.

    Returns:
      ``[n, H', W', C']``, the branches joined along the channels in their order.
    """

    def convolve(conv: Conv, x: Array) -> Array:
        return _convolve(weights, _full(block, conv.name), conv, x)

    out = []
    for branch in BLOCKS[block]:
        value = x
        for step in branch:
            if isinstance(step, Pool):
                value = _pool(step, value)
            elif isinstance(step, Fork):
                parts = [convolve(step.first, value), convolve(step.second, value)]
                value = jnp.concatenate(parts, -1)
            else:
                value = convolve(step, value)
        out.append(value)
    return jnp.concatenate(out, -1)


def resize(x: Array, size: int = SIZE) -> Array:
    """Bilinear resizing as TensorFlow 1 does it: pixel i is read at ``i * in / out``.

    There is no half-pixel shift and no smoothing, and positions beyond the last pixel
    repeat it.

    Args:
      x: ``[n, H, W, C]``.
      size: of both sides of the result.

    Returns:
      ``[n, size, size, C]``.
    """
    for axis in (2, 1):
        length = x.shape[axis]
        at = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = at.astype(np.int32)
        high = np.minimum(low + 1, length - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        part = (at - low).reshape(shape)
        a, b = jnp.take(x, low, axis), jnp.take(x, high, axis)
        x = a + (b - a) * part
    return x


def features_of(weights: Weights, x: Array) -> Extracted:
    """Pooled features ``[n, 2048]`` and logits without bias ``[n, 1008]``.

    Args:
      weights: see `run_block`.
      x: images ``[n, H, W, C]`` in [-1, 1]; one channel stands for three equal ones.
    """
    need_images("inception", x.shape)
    levels = x * 127.5 + 127.5
    x = (resize(jnp.broadcast_to(levels, (*x.shape[:3], 3))) - 128.0) / 128.0
    for block in BLOCKS:
        x = run_block(weights, block, x)
    x = x.mean((1, 2))
    logits = jnp.dot(x, weights["fc.weight"].T, precision=jax.lax.Precision.HIGHEST)
    return Extracted(x, logits)


def inception(path: str | os.PathLike) -> FeatureExtractor:
    """Inception-v3 with weights that the user gives; ``D = 2048``.

    Args:
      path: ``.safetensors`` or ``.npz`` with the weights of
        ``pt_inception-2015-12-05`` under their own names, ``Conv2d_1a_3x3.conv.weight``
        and so on; ``num_batches_tracked`` is ignored.

    Returns:
      The extractor; its logits leave out the bias, as the inception score does.

    Raises:
      ValueError: no such file, weights missing, or the weights of torchvision's own
        network, whose features give other numbers.
    """
    found = read_weights(path)
    missing = [key for key in keys() if key not in found]
    if missing:
        raise ValueError(
            f"{path} must hold the weights of pt_inception-2015-12-05, {len(missing)} "
            f"are missing: {', '.join(missing[:3])}, ...; it has "
            f"{', '.join(sorted(found)[:3])}, ..."
        )
    if len(found["fc.weight"]) != CLASSES:
        raise ValueError(
            f"{path} must hold pt_inception-2015-12-05 with {CLASSES} classes, got "
            f"{len(found['fc.weight'])}: torchvision's own weights give other features "
            "and no comparable FID."
        )
    weights = {key: np.asarray(found[key], np.float32) for key in keys()}
    return FeatureExtractor(
        "inception",
        fingerprint("inception", weights),
        features_of,
        weights,
        batch_size=64,
    )
