"""Options that count training cycles, and how they follow a run of another length.

A schedule or option that counts cycles says so by its type: an attribute or argument
annotated `Cycles`. Nothing lists them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

# As annotations are written; both are compared, since most are text until they are
# looked at.
from distilljax.diffusion.times import Cycles

_COUNTED = ("Cycles", Cycles)


def counted(factory: Callable[..., Any]) -> set[str]:
    """Names of the arguments of a factory that count cycles."""
    known = inspect.signature(factory).parameters
    return {name for name, given in known.items() if given.annotation in _COUNTED}


def stretched(value: Any, factor: float) -> Any:
    """A value with every count of cycles in it multiplied by a factor.

    Args:
      value: a schedule or any frozen dataclass, or a tuple or mapping of such.
      factor: length of the new run over that of the old one.
    """
    if isinstance(value, Mapping):
        return {name: stretched(item, factor) for name, item in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(stretched(item, factor) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changed = {}
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        new = (
            _times(held, factor) if field.type in _COUNTED else stretched(held, factor)
        )
        if new is not held:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value


def stretched_options(
    factories: Mapping[str, Callable[..., Any]],
    name: str,
    options: Mapping[str, Any],
    factor: float,
) -> dict[str, Any]:
    """Options of a method for a run of another length.

    Args:
      factories: by method.
      name: of the method.
      options: of its factory; mappings in them are options of other factories.
      factor: length of the new run over that of the old one.
    """
    every = set().union(*map(counted, factories.values()))

    def of(given: Mapping[str, Any], counts: set[str]) -> dict[str, Any]:
        return {
            key: of(value, every)
            if isinstance(value, Mapping)
            else _times(value, factor)
            if key in counts
            else stretched(value, factor)
            for key, value in given.items()
        }

    return of(options, counted(factories[name]))


def _times(count: Any, factor: float) -> Any:
    """A number of cycles for another run; 0 and 1 mean none and every one."""
    if not isinstance(count, int) or isinstance(count, bool) or count <= 1:
        return stretched(count, factor)
    return max(1, round(count * factor))
