"""Words in pictures of samples: the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distilljax.runtime.extras import needed

# Rows of a caption, its letters and its colours.
HEIGHT, _SIZE = 13, 10
_INK, _PAPER = (225, 225, 225), (32, 32, 32)


def captions(texts: Sequence[str], width: int) -> NDArray[np.uint8]:
    """Strips with one line of text each.

    Args:
      texts: the lines; one that is too long ends in an ellipsis.
      width: of a strip in pixels.

    Returns:
      uint8 ``[N, HEIGHT, width, 3]``.
    """
    with needed("pictures"):
        from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_SIZE)
    known: dict[str, NDArray[np.uint8]] = {}
    for text in texts:
        if text in known:
            continue
        shown = text
        while shown and font.getlength(shown) > width - 2:
            shown = shown.removesuffix("\u2026")[:-1] + "\u2026"
            if shown == "\u2026":
                break
        strip = Image.new("RGB", (width, HEIGHT), _PAPER)
        ImageDraw.Draw(strip).text((1, 0), shown, fill=_INK, font=font)
        known[text] = np.asarray(strip)
    return np.stack([known[text] for text in texts])
