"""Messages that say what was expected, what came and what to do."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Message for a name that does not exist.

    Args:
      kind: what was looked up, for example ``"method"`` or ``"config key"``.
      name: the name that came.
      known: the names that exist.

    Returns:
      One line with the name, the near matches and everything that exists.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or '(none)'}."


def check_finite(name: str, value: Any) -> None:
    """Refuses NaN and infinity in a setting: each comparison with a NaN is false.

    Args:
      name: of the setting, for the message.
      value: a number, or lists, mappings, dataclasses and partial calls that hold some;
        anything else is left alone.

    Raises:
      ValueError: naming where the number stands.
    """
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
    elif isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        inner = ((field.name, getattr(value, field.name)) for field in fields)
    elif isinstance(value, functools.partial):
        inner = (*enumerate(value.args), *value.keywords.items())
    for key, part in inner:
        where = f"[{key}]" if isinstance(key, int) else f".{key}"
        check_finite(name + where, part)


def check_whole(name: str, value: Any) -> int:
    """A whole number as Python has it; numpy's and jax's are taken.

    Raises:
      ValueError: on anything else, a float with no fraction included.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
