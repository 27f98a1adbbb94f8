"""Checks of what the evaluation is given, with errors that say how to mend it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Slack for values that were scaled in float32 and sit on the boundary.
_RANGE_SLACK = 1e-6


def _numeric(name: str, value: ArrayLike) -> NDArray:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        try:  # bfloat16 and the float8 types are no numpy floats
            array = array.astype(np.float64, casting="safe")
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} must be an array of real numbers, got dtype {array.dtype}; "
                "convert it with np.asarray(x, np.float32)."
            ) from None
    return array


def _finite(name: str, array: NDArray) -> None:
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise ValueError(
            f"{name} must be finite, got {bad} NaN or infinite of {array.size} values; "
            "find where they come from, statistics over them say nothing."
        )


def check_features(name: str, value: ArrayLike, least: int = 2) -> NDArray[np.float64]:
    """Features as float64 ``[N, D]``.

    Args:
      name: the argument's name, for the error.
      value: ``[N, D]`` finite numbers with ``N >= least`` and ``D >= 1``.
      least: the fewest rows that make sense.

    Returns:
      The features in float64.

    Raises:
      ValueError: wrong rank, too few rows, no columns, NaN, or not numbers.
    """
    array = _numeric(name, value)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must have shape [N, D], got shape {array.shape}; "
            "flatten images with x.reshape(len(x), -1)."
        )
    if array.shape[0] < least or array.shape[1] < 1:
        raise ValueError(
            f"{name} must have at least {least} rows and 1 column, got shape "
            f"{array.shape}; pass more samples."
        )
    _finite(name, array)
    return array.astype(np.float64)


def check_same_width(first: str, a: NDArray, second: str, b: NDArray) -> None:
    """Raises ValueError unless two feature arrays have equally many columns."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{first} and {second} must have equally many columns, got shapes "
            f"{a.shape} and {b.shape}; compute both with the same features."
        )


def check_images(
    name: str, value: ArrayLike, shape: tuple[int, ...] | None = None
) -> NDArray[np.float32]:
    """Images as float32 ``[N, H, W, C]`` in [-1, 1].

    Args:
      name: the argument's name, for the error.
      value: ``[N, H, W, C]`` finite numbers in [-1, 1], ``N >= 1``.
      shape: the ``(H, W, C)`` they must have, if that is known.

    Returns:
      The images in float32.

    Raises:
      ValueError: wrong rank or shape, empty, NaN, or values outside [-1, 1].
    """
    array = _numeric(name, value)
    if array.ndim != 4:
        raise ValueError(
            f"{name} must be images of shape [N, H, W, C], got shape {array.shape}; "
            "add the missing axes with x.reshape(n, h, w, c)."
        )
    if not array.size:
        raise ValueError(
            f"{name} must hold at least one image, got shape {array.shape}; "
            "sample before evaluating."
        )
    if shape is not None and array.shape[1:] != tuple(shape):
        raise ValueError(
            f"{name} must have images of shape {tuple(shape)} like the reference, got "
            f"{array.shape[1:]}; compare samples and data of one data set."
        )
    _finite(name, array)
    low, high = float(array.min()), float(array.max())
    if low < -1 - _RANGE_SLACK or high > 1 + _RANGE_SLACK:
        raise ValueError(
            f"{name} must lie in [-1, 1], got values from {low:.4g} to {high:.4g}; "
            "clip samples with np.clip(x, -1, 1), scale bytes with x / 127.5 - 1."
        )
    return array.astype(np.float32)


def check_labels(
    name: str, value: ArrayLike, count: int, classes: int | None = None
) -> NDArray[np.int32]:
    """Class labels as int32 ``[N]``.

    Args:
      name: the argument's name, for the error.
      value: ``[N]`` integers, at least 0 and below `classes`.
      count: the N that is expected.
      classes: how many classes there are; ``None`` sets no upper bound.

    Returns:
      The labels in int32.

    Raises:
      ValueError: not integers, another shape, or out of range.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be integers, got dtype {array.dtype}; convert class numbers "
            "with x.astype(np.int32), one-hot rows with x.argmax(-1)."
        )
    if array.shape != (count,):
        raise ValueError(
            f"{name} must have shape ({count},), one label an image, got shape "
            f"{array.shape}; pass the labels that these images were drawn with."
        )
    low, high = (int(array.min()), int(array.max())) if count else (0, 0)
    if low < 0 or (classes is not None and high >= classes):
        bound = "at least 0" if classes is None else f"in 0..{classes - 1}"
        raise ValueError(
            f"{name} must be {bound}, got values from {low} to {high}; number the "
            "classes from 0 without gaps."
        )
    return array.astype(np.int32)
