"""Samples in pictures: a folder of them, or one."""

from __future__ import annotations

import concurrent.futures
import sys
from typing import NamedTuple

import numpy as np
from etils import epath
from numpy.typing import NDArray

from distilljax.data.images import SUFFIXES, decoded, is_grey, listed
from distilljax.evaluation.plots import grid_of
from distilljax.runtime import terminal
from distilljax.runtime.extras import needed


class Pictures(NamedTuple):
    """Pictures as they are in their files.

    Attributes:
      rows: ``[N, H, W, C]`` uint8, one channel where all of them are grey.
      labels: ``[N]`` int32 by the names of class folders, or None.
    """

    rows: NDArray[np.uint8]
    labels: NDArray[np.int32] | None = None


def is_picture(path: epath.Path) -> bool:
    """Whether a path has the ending of a picture."""
    return path.name.lower().endswith(SUFFIXES)


def samples_of_grid(path: epath.Path) -> str:
    """Name of the file with the samples of a grid; "" for any other picture."""
    with needed("reading pictures"):
        from PIL import Image

    try:
        with path.open("rb") as opened, Image.open(opened) as image:
            return grid_of(image)
    except (OSError, SyntaxError, ValueError):
        # `read_pictures` says what is wrong with it.
        return ""


def read_pictures(path: epath.Path, *, progress: bool | None = None) -> Pictures:
    """Reads a folder of pictures (``folder/<name>`` or ``folder/<class>/<name>``).

    They are read upright, on white where they are transparent, and never resized.

    Args:
      path: the folder, or one picture.
      progress: shows a bar; default on a terminal.

    Raises:
      ValueError: no pictures, one that cannot be read, or several sizes.
    """
    if path.is_dir():
        names, found, _ = listed(path)
        files = [path / name for name in names]
        labels = np.asarray(found, np.int32) if found else None
    else:
        files, labels = [path], None
    shown = terminal.is_terminal() if progress is None else progress
    with concurrent.futures.ThreadPoolExecutor() as threads:
        read = threads.map(_read, files)
        if shown and len(files) > 1:
            options = {"total": len(files), "desc": path.name, "unit": "picture"}
            read = terminal.bar(read, **options, file=sys.stderr)
        rows, grey = None, True
        for i, (pixels, plain) in enumerate(read):
            if rows is None:
                rows = np.empty((len(files), *pixels.shape), np.uint8)
            if pixels.shape != rows.shape[1:]:
                raise ValueError(
                    f"pictures must have one size, got {_size(rows[0])} in {files[0]} "
                    f"and {_size(pixels)} in {files[i]}; resize or crop them alike "
                    "(how changes every number, so that it is not done here)"
                )
            rows[i], grey = pixels, grey and plain
    assert rows is not None
    # A copy: the view would hold the other channels.
    return Pictures(rows[..., :1].copy() if grey else rows, labels)


def _size(pixels: NDArray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _read(file: epath.Path) -> tuple[NDArray[np.uint8], bool]:
    """A picture in colours, and whether it is grey."""
    with needed("reading pictures"):
        from PIL import Image

    try:
        with file.open("rb") as opened, Image.open(opened) as image:
            grey = is_grey(image)
            width, height = image.size
            # Orientations of 5 and more lie on their side.
            if image.getexif().get(0x0112, 1) >= 5:
                width, height = height, width
            return decoded(image, (height, width, 3)), grey
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} is no picture that can be read: {error}") from error
