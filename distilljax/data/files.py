"""Sources from files."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from distilljax.data.sources import ArraySource, arrays


def npz(
    path: str | os.PathLike,
    *,
    sample_shape: tuple[int, ...],
    num_classes: int | None = None,
    images: bool | None = None,
) -> ArraySource:
    """Samples ``x0`` and, if it is there, ``cond`` of an ``.npz`` file, in memory.

    Args:
      path: file with ``x0 [N, *sample_shape]``, floating, and labels or embeddings
        ``cond [N, ...]``.
      sample_shape: what the file must hold; a card says it, so that programs can be
        built without the data.
      num_classes: see `arrays`.
      images: see `arrays`; False for latents.

    Returns:
      The source.

    Raises:
      ValueError: if the file is not there, holds no ``x0`` or samples of another shape,
        and where `arrays` does.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            f"no data at {path}: write x0 [N, {', '.join(map(str, sample_shape))}] "
            "(images in [-1, 1], or latents) and cond [N] into it with np.savez"
        )
    with np.load(path) as found:
        if "x0" not in found:
            raise ValueError(f"{path} must hold 'x0', it has {sorted(found.files)}")
        x0 = found["x0"]
        cond = found.get("cond")
    if x0.shape[1:] != tuple(sample_shape):
        raise ValueError(
            f"{path}: x0 must be [N, {', '.join(map(str, sample_shape))}], got "
            f"{x0.shape}"
        )
    return arrays(x0, cond, num_classes=num_classes, images=images, name=path.stem)
