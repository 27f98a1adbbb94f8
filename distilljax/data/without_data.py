"""Conditions without samples, for methods that need no data."""

from __future__ import annotations

import os

import numpy as np

from distilljax.data.files import load_npz
from distilljax.data.sources import ArraySource, condition
from distilljax.runtime import words


@words.source
def labels(num_classes: int, sample_shape: tuple[int, ...]) -> ArraySource:
    """Class labels alone, every class once an epoch.

    Args:
      num_classes: number of classes, at least 1.
      sample_shape: shape of the samples that the student makes.

    Raises:
      ValueError: on no classes.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    columns, classes = condition(np.arange(num_classes), num_classes)
    return ArraySource(columns, classes, "labels", tuple(sample_shape))


@words.source
def conditions(
    path: str | os.PathLike,
    *,
    sample_shape: tuple[int, ...],
    num_classes: int | None = None,
    cond_features: int | None = None,
) -> ArraySource:
    """Conditions of a file alone: embeddings of prompts, or a list of labels.

    Args:
      path: ``.npz`` with ``cond``, or an ``.npy`` which is that: floating ``[N, d]`` or
        ``[N, tokens, d]`` or integers ``[N]``; in a bucket too.
      sample_shape: shape of the samples that the student makes.
      num_classes: number of labels; default the largest plus one.
      cond_features: what ``d`` must be; a card says it, so that programs can be built
        without the file.

    Raises:
      ValueError: if the file is not there, holds no ``cond`` or another ``d``.
    """
    path, found = load_npz(path, ("cond",), "cond [N, d], embeddings of prompts,")
    columns, classes = condition(found["cond"], num_classes)
    source = ArraySource(columns, classes, path.stem, tuple(sample_shape))
    if cond_features not in (None, source.cond_features):
        raise ValueError(
            f"{path}: cond must be floats [N, {cond_features}], got "
            f"{columns['cond'].dtype} {columns['cond'].shape}"
        )
    return source
