"""Values of settings against the types of the dataclass that holds them."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

_WORDS = {
    float: "a finite number",
    int: "a whole number",
    bool: "True or False",
    str: "text",
}


def check_values(record: Any, where: str = "") -> None:
    """Checks the fields of a frozen dataclass, and turns numpy's numbers into Python's.

    A NaN passes every comparison with a bound, and a number as text fails somewhere
    deep inside; here both are refused by the name of their key.

    Args:
      record: the instance, from its ``__post_init__``.
      where: in front of the names, ``"checkpoint."``.

    Raises:
      ValueError: naming the key, what it must be and what came.
    """
    hints = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        found = _checked(hints[field.name], value, f"{where}{field.name}")
        if found is not value:
            object.__setattr__(record, field.name, found)


def _checked(hint: Any, value: Any, name: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return value
        (hint,) = (kind for kind in inner if kind is not type(None))
        return _checked(hint, value, name)
    if hint in _WORDS:
        return _number(hint, value, name)
    if origin is tuple and inner[-1] is not Ellipsis:
        if not isinstance(value, (tuple, list)) or len(value) != len(inner):
            raise ValueError(f"{name} must be {len(inner)} values, got {value!r}")
        return tuple(
            _checked(kind, part, f"{name}[{i}]")
            for i, (kind, part) in enumerate(zip(inner, value, strict=True))
        )
    if origin is tuple and not isinstance(value, (tuple, list)):
        raise ValueError(f"{name} must be a list, got {value!r}")
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be a mapping, got {value!r}")
        return {k: _checked(inner[1], v, f"{name}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and not isinstance(value, hint):
        raise ValueError(f"{name} must be a {hint.__name__}, got {value!r}")
    return value


def _number(kind: type, value: Any, name: str) -> Any:
    fits = {
        bool: isinstance(value, bool),
        str: isinstance(value, str),
        int: isinstance(value, numbers.Integral) and not isinstance(value, bool),
        float: isinstance(value, numbers.Real) and not isinstance(value, bool),
    }[kind]
    if fits and kind in (int, float):
        whole = isinstance(value, numbers.Integral)
        plain = int(value) if whole else float(value)
        fits = math.isfinite(plain)
        value = value if type(value) is type(plain) else plain
    if fits:
        return value
    text = ", as text; leave the quotes out" if isinstance(value, str) else ""
    raise ValueError(f"{name} must be {_WORDS[kind]}, got {value!r}{text}")
