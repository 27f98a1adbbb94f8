"""Sample grids as images and as PNG files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation import captions as lines
from distilljax.runtime.extras import needed
from distilljax.runtime.storage import write_atomic

_MAGENTA = (255, 0, 255)
_BETWEEN = 64
# Text in a picture that says where the samples of a grid are.
_GRID = "distilljax samples"


def image_grid(
    images: ArrayLike,
    columns: int,
    scale: int = 1,
    *,
    border: int = 1,
    gap: int = 2,
    captions: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """Tiles images row by row, without interpolation.

    Args:
      images: ``[N, H, W, C]`` with 1 or 3 channels; -1 is black and 1 is white. Values
        beyond are clipped for display, NaN and infinities are drawn in magenta.
      columns: images in a row, at least 1; places without an image stay dark grey.
      scale: side of the square that one pixel becomes, at least 1.
      border: black pixels around every image, scaled with it; they keep drawings
        that reach the edge apart from their neighbours.
      gap: width of the dark grey line between tiles, not scaled.
      captions: a text above each image, such as the name of its class; one that is too
        long is cut.

    Returns:
      uint8 ``[rows * (h + gap) - gap, columns * (w + gap) - gap, 3]`` with
      ``h = (H + 2 border) scale`` and ``w = (W + 2 border) scale``; captions add
      `captions.HEIGHT` to ``h``.

    Raises:
      ValueError: wrong rank, no image, another number of channels, bad sizes.
    """
    x = np.asarray(images, np.float32)
    if x.ndim != 4 or not x.size or x.shape[3] not in (1, 3):
        raise ValueError(
            "images must be a filled array [N, H, W, C] with 1 or 3 channels, got "
            f"shape {x.shape}; decode latents before drawing them."
        )
    if columns < 1 or scale < 1 or border < 0 or gap < 0:
        raise ValueError(
            "columns and scale must be at least 1, border and gap at least 0, got "
            f"columns={columns}, scale={scale}, border={border}, gap={gap}; pass "
            "positive integers."
        )
    if captions is not None and len(captions) != len(x):
        raise ValueError(f"captions must be {len(x)}, one an image: {len(captions)}")
    finite = np.isfinite(x).all(3)
    shades = np.clip(np.where(np.isfinite(x), x, 0.0), -1.0, 1.0) * 127.5 + 127.5
    pixels = np.broadcast_to(np.rint(shades), (*x.shape[:3], 3)).astype(np.uint8)
    pixels[~finite] = _MAGENTA
    pixels = np.pad(pixels, ((0, 0), (border,) * 2, (border,) * 2, (0, 0)))
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    if captions is not None:
        strips = lines.captions(captions, pixels.shape[2])
        pixels = np.concatenate([strips, pixels], 1)
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    grid = np.full(shape, _BETWEEN, np.uint8)
    for index, tile in enumerate(pixels):
        top = index // columns * (height + gap)
        left = index % columns * (width + gap)
        grid[top : top + height, left : left + width] = tile
    return grid


def save_png(path: str | os.PathLike[str], grid: NDArray[np.uint8]) -> epath.Path:
    """Writes a uint8 image ``[H, W]`` or ``[H, W, 3]`` as PNG; see `save_picture`."""
    return save_picture(path, grid, kind="PNG")


def save_picture(
    path: str | os.PathLike[str],
    grid: NDArray[np.uint8],
    *,
    kind: str | None = None,
    note: str = "",
) -> epath.Path:
    """Writes a uint8 image ``[H, W]`` or ``[H, W, 3]``, whole or not at all.

    Args:
      path: the file; its folder is made if it is missing.
      grid: for example what `image_grid` returns.
      kind: ``PNG`` or ``JPEG``; default by the ending of the path.
      note: for a grid, the name of the file that holds its samples, so that no reader
        takes the grid for a sample (`grid_of`).

    Returns:
      The path.

    Raises:
      ValueError: not uint8, or another shape.
      ModuleNotFoundError: Pillow is not installed.
    """
    grid = np.asarray(grid)
    if grid.dtype != np.uint8 or not (
        grid.ndim == 2 or (grid.ndim == 3 and grid.shape[2] == 3)
    ):
        raise ValueError(
            "grid must be uint8 of shape [H, W] or [H, W, 3], got "
            f"{grid.dtype} {grid.shape}; make it with image_grid(images, columns)."
        )
    with needed("pictures"):
        from PIL import Image, PngImagePlugin
    buffer, options = io.BytesIO(), {}
    if kind is None:
        kind = "PNG" if epath.Path(path).suffix.lower() == ".png" else "JPEG"
    if kind == "PNG":
        options["optimize"] = True
        if note:
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt(_GRID, note)
    else:
        options |= {"quality": 95, "comment": f"{_GRID}: {note}" if note else ""}
    Image.fromarray(grid).save(buffer, kind, **options)
    return write_atomic(path, buffer.getvalue())


def grid_of(image: Any) -> str:
    """The file with the samples of a grid, of an opened picture; "" if it is none."""
    comment = image.info.get("comment", b"")
    if isinstance(comment, bytes):
        comment = comment.decode(errors="replace")
    if comment.startswith(f"{_GRID}: "):
        return comment.removeprefix(f"{_GRID}: ")
    return str(getattr(image, "text", {}).get(_GRID, ""))
