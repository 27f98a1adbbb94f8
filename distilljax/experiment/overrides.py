"""Values of a card that are written in a shell."""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from distilljax.runtime.errors import unknown


def override(config: ConfigDict, texts: Mapping[str, str]) -> ConfigDict:
    """A card with values as they are written in a shell.

    ``None``, ``True``, numbers, lists and dicts are written as in Python; text stands
    for itself, and stays text where the card has text (laws and grids do).

    Args:
      config: the card.
      texts: by dotted key, ``{"student.lr": "1e-4"}``.

    Raises:
      ValueError: for an unknown key, with near matches, or a value of another kind than
        the card's.
    """
    config = copy.deepcopy(config)
    known = _keys(config)
    for key, text in texts.items():
        if key not in known:
            raise ValueError(unknown("config key", key, known))
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        with section.unlocked(), section.ignore_type():
            section[last] = _written(key, text, section[last])
    config.lock()
    return config


_WORDS = {"none": None, "null": None, "true": True, "false": False}


def _written(key: str, text: str, now: Any) -> Any:
    """The value that a text of the shell means where the card holds ``now``."""
    word = text.strip().lower()
    if word in _WORDS:
        value: Any = _WORDS[word]
    else:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            # A key that is a list raises a TypeError.
            value = text
    if isinstance(now, str):
        return None if value is None else text
    if isinstance(now, bool) and value in (0, 1):
        value = bool(value)
    if isinstance(now, ConfigDict) and isinstance(value, Mapping):
        return ConfigDict(dict(value), convert_dict=True)
    numbers = (int, float)
    kinds = numbers if isinstance(now, numbers) else type(now)
    if isinstance(now, (tuple, list)):
        kinds = (tuple, list)
        value = type(now)(value) if isinstance(value, kinds) else value
    if isinstance(now, bool):
        kinds = bool
    if now is None or value is None or isinstance(value, kinds):
        return value
    raise ValueError(
        f"--config.{key}={text} does not fit the card, which holds {now!r} there; "
        "write a value of the same kind, or None"
    )


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    out = []
    for key in config:
        value = config[key]
        out.append(f"{prefix}{key}")
        if isinstance(value, ConfigDict):
            out += _keys(value, f"{prefix}{key}.")
    return out
