"""Class labels as a person says them: by name, or as the integers that networks take.

A source may name its classes (``class_names``): an image folder has those of its class
folders. A run records them, so that its students are asked for a cat by that word.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from distilljax.runtime.errors import unknown

# Names that a message lists; of more it says the near ones.
_LISTED = 40


def names_of(source: Any) -> tuple[str, ...] | None:
    """Names of a source's classes by label, None where they have none.

    Raises:
      ValueError: if there are not as many as classes, or two are equal.
    """
    found = getattr(source, "class_names", None)
    if found is None:
        return None
    names = tuple(str(name) for name in found)
    if len(names) != source.num_classes or len(set(names)) != len(names):
        raise ValueError(
            f"class_names must be {source.num_classes} different names, one for each "
            f"label from 0, got {len(names)}: {', '.join(names[:_LISTED])}"
        )
    return names


def numbered(labels: Any, names: Sequence[str] | None = None) -> Any:
    """Labels as integers.

    Args:
      labels: names and integers, in a list or joined by commas in a text; None and
        arrays of numbers are returned as they are.
      names: of the classes by label. A text that is one of them is that class, also
        where it looks like a number.

    Returns:
      A list of integers, or what was given.

    Raises:
      ValueError: for a text that is neither, with the near names.
    """
    if isinstance(labels, str):
        labels = labels.split(",")
    if labels is None or np.asarray(labels).dtype.kind not in "USO":
        return labels
    known = tuple(names or ())
    return [_number(label, known) for label in labels]


def asked(labels: Any, fitted: Any) -> Any:
    """Labels for a trained student, as `numbered` returns them.

    Args:
      labels: see `numbered`.
      fitted: its ``num_classes`` and ``class_names``.

    Raises:
      ValueError: also where it was trained without classes and would not read them.
    """
    if labels is not None and fitted.num_classes is None:
        raise ValueError(
            "labels were given, and this student was trained without classes: it would "
            "not read them; leave labels (--labels) out"
        )
    return numbered(labels, fitted.class_names)


def _number(label: Any, names: tuple[str, ...]) -> int:
    if isinstance(label, numbers.Integral):
        return int(label)
    if not isinstance(label, str):
        raise ValueError(f"labels must be integers or names, got {label!r}")
    text = str(label)
    for said in (text, text.strip()):
        if said in names:
            return names.index(said)
    try:
        return int(text)
    except ValueError:
        pass
    if not names:
        raise ValueError(
            "labels must be integers (on the command line integers joined by commas), "
            f"got {text.strip()!r}: the classes of this run have no names, as those of "
            "an image folder do"
        )
    message = unknown("class", text.strip(), names)
    if len(names) > _LISTED:
        message = message.split(" Known: ")[0] + f" There are {len(names)}."
    raise ValueError(f"{message} Or a label from 0 to {len(names) - 1}.")


def named(labels: Any, names: Sequence[str] | None = None) -> list[str] | None:
    """What a picture calls integer labels; None without labels.

    Args:
      labels: integers, or None.
      names: of the classes by label; without them a class is called by its number.
    """
    if labels is None:
        return None
    return [str(int(k)) if names is None else str(names[int(k)]) for k in labels]


def columns_of(labels: Any, most: int = 10) -> int:
    """Columns of a grid in which every class has columns, or rows, of its own.

    Labels that come in turn (0, 1, 2, 0, 1, 2) get columns, labels in runs of equal
    length (0, 0, 0, 0, 1, 1, 1, 1) rows.

    Args:
      labels: ``[N]``, one an image.
      most: columns of a grid of other labels; aligned ones may take twice as many.
    """
    y = np.asarray(labels)
    most = min(most, len(y))
    turn = next(p for p in range(1, len(y) + 1) if (y[p:] == y[:-p]).all())
    if 1 < turn < len(y) and turn <= 2 * most:
        return max(most // turn, 1) * turn
    edges = np.flatnonzero(np.diff(y)) + 1
    run = int(edges[0]) if len(edges) else 0
    aligned = 4 <= run <= 2 * most and len(y) % run == 0 and not (edges % run).any()
    return run if aligned else most
