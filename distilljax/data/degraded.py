"""Pairs of sharp and degraded images, for restoration."""

from __future__ import annotations

import numpy as np

from distilljax.data.sources import ArraySource, arrays, digits
from distilljax.runtime import words
from distilljax.runtime.errors import unknown

# Every fourth digit is held out.
_FOLD = 4
PARTS = ("train", "test", "all")


def block_means(x: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks ``factor x factor`` of images ``[N, H, W, C]``.

    Raises:
      ValueError: if the blocks do not tile the images.
    """
    count, height, width, channels = x.shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"factor must divide height and width {height} x {width}, got {factor}"
        )
    rows, columns = height // factor, width // factor
    blocks = x.reshape(count, rows, factor, columns, factor, channels)
    return blocks.mean((2, 4))


def repeated(x: np.ndarray, factor: int) -> np.ndarray:
    """Images ``[N, h, w, C]`` enlarged by repetition (nearest neighbour)."""
    return x.repeat(factor, 1).repeat(factor, 2)


@words.source
def degraded_digits(
    part: str = "train", *, factor: int = 2, noise: float = 0.0, seed: int = 0
) -> ArraySource:
    """The digits beside their means over blocks, to restore one from the other.

    Args:
      part: ``train``, ``test`` (every fourth digit) or ``all``.
      factor: side of a block; 1, 2, 4 or 8.
      noise: standard deviation of Gaussian noise on the small image.
      seed: of the noise.

    Returns:
      Fields ``x0 [8, 8, 1]``, the sharp digit; ``cond [8/factor, 8/factor, 1]``, the
      small image; ``degraded [8, 8, 1]``, the small image enlarged by repetition; and
      ``label``, the digit, which nothing is conditioned on.

    Raises:
      ValueError: on an unknown part, a factor that does not divide 8 or a negative
        noise.
    """
    if part not in PARTS:
        raise ValueError(unknown("part", part, PARTS))
    if noise < 0.0:
        raise ValueError(f"noise must be at least 0, got {noise}")
    whole = digits().columns
    sharp, label = whole["x0"], whole["cond"]
    small = block_means(sharp, factor)
    rng = np.random.default_rng(seed)
    small = small + noise * rng.standard_normal(small.shape, np.float32)
    held_out = np.arange(len(sharp)) % _FOLD == _FOLD - 1
    rows = {"train": ~held_out, "test": held_out, "all": held_out | True}[part]
    return arrays(
        sharp[rows],
        small[rows],
        degraded=repeated(small[rows], factor),
        label=label[rows],
        name="degraded_digits",
    )
