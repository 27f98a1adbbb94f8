"""JSON that every parser reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np


def strict(value: Any, name: str = "report") -> tuple[Any, list[str]]:
    """The value as plain JSON types, with every NaN and infinity turned into null.

    Args:
      value: nested mappings, sequences, arrays, numbers, strings, paths, ``None``.
      name: what to call the value in notes and errors.

    Returns:
      The plain value, and a note for each number that was not finite.

    Raises:
      TypeError: something inside has no JSON form.
    """
    notes: list[str] = []

    def plain(item: Any, where: str) -> Any:
        if isinstance(item, Mapping):
            return {str(k): plain(v, f"{where}.{k}") for k, v in item.items()}
        if isinstance(item, list | tuple):
            return [plain(v, f"{where}[{i}]") for i, v in enumerate(item)]
        if item is None or isinstance(item, bool | int | str):
            return item
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        if not isinstance(item, float):
            array = np.asarray(item)
            if array.dtype.kind not in "biuf":
                raise TypeError(
                    f"{where} must be a number, string, list or mapping, got "
                    f"{type(item).__name__}; convert it before reporting it."
                )
            return plain(array.tolist(), where)
        if math.isfinite(item):
            return item
        notes.append(f"{where} was {item}, written as null")
        return None

    return plain(value, name), notes


def dump_json(value: Any) -> str:
    """Strict JSON text, indented, with a newline at its end."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
