"""Label lists with given counts, to generate as many of each class as the data has."""

from __future__ import annotations

import numpy as np


def label_counts(labels: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """How often each label occurs.

    Args:
      labels: integers ``[N]``, ``>= 0``.
      num_classes: length of the result; default the largest label plus one.

    Returns:
      Counts, int64 ``[num_classes]``.

    Raises:
      ValueError: on labels that are no integers or out of range.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers [N], got {labels.dtype} of shape {labels.shape}"
        )
    high = int(labels.max(initial=-1))
    classes = high + 1 if num_classes is None else num_classes
    if int(labels.min(initial=0)) < 0 or high >= classes:
        raise ValueError(
            f"labels must lie in 0 .. {classes - 1}, got {labels.min()} to {high}"
        )
    return np.bincount(labels, minlength=classes)


def interleaved_labels(counts: np.ndarray) -> np.ndarray:
    """Labels with exactly these counts, every class spread evenly over the list.

    The k-th of the ``n`` labels of a class stands at ``(k + 1/2) / n`` of the list, so
    that every long prefix has the classes in nearly the right shares.

    Args:
      counts: labels wanted per class, ``[num_classes]``, ``>= 0``.

    Returns:
      Labels, int32 ``[sum(counts)]``.

    Raises:
      ValueError: on negative counts.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(f"counts must be integers >= 0, [num_classes], got {counts}")
    labels = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(n) for n in counts] or [np.zeros(0)])
    place = (rank + 0.5) / counts[labels]
    return labels[np.argsort(place, kind="stable")].astype(np.int32)
