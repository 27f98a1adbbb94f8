"""How near a restored image is to the one that it should be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from distilljax.evaluation.inputs import check_images


def psnr(x: ArrayLike, sharp: ArrayLike) -> float:
    """Mean peak signal-to-noise ratio of pairs of images, in dB.

        mean_i 10 log10(2^2 / mean |x_i - sharp_i|^2)

    Args:
      x: restored images ``[N, H, W, C]`` in [-1, 1].
      sharp: what they should be, likewise.

    Returns:
      The mean over images; infinite if one of them is exact.

    Raises:
      ValueError: bad images, or unequal numbers of them.
    """
    wanted = check_images("sharp", sharp)
    found = check_images("x", x, wanted.shape[1:])
    if len(found) != len(wanted):
        raise ValueError(
            f"x must have one image for each of the {len(wanted)} of sharp, got "
            f"{len(found)}"
        )
    difference = found.astype(np.float64) - wanted.astype(np.float64)
    error = np.mean(difference.reshape(len(wanted), -1) ** 2, axis=1)
    with np.errstate(divide="ignore"):
        return float(np.mean(10.0 * np.log10(4.0 / error)))
