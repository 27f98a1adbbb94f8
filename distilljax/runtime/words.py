"""Names that a config may write: laws, grids, metrics and the like as text.

What a config can name says so where it is defined:

    @words.call                     "LogNormal(-1.0, 1.4)" makes one
    class LogNormal: ...

    @words.value                    "half_mse" stands for the function itself
    def half_mse(...): ...

    @words.partial                  both: "clip" is the function, "clip(0.1)" fixes
    def clip(c, most): ...          its arguments after the first

and what a section of a config can name by ``name``, with its arguments beside it:

    @words.source                   {"name": "image_folder", "path": ...}
    def image_folder(path, ...): ...

    @words.network                  {"name": "dit", "size": "B"}
    def dit(...): ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from distilljax.runtime.values import check_call

T = TypeVar("T", bound=Callable[..., Any])
CALLS: dict[str, Callable[..., Any]] = {}
VALUES: dict[str, Any] = {}
SOURCES: dict[str, Callable[..., Any]] = {}
NETWORKS: dict[str, Callable[..., Any]] = {}


def _enter(
    table: dict[str, Any], name: str, owner: Any, value: Any, *others: dict[str, Any]
) -> None:
    known = next((t[name] for t in (table, *others) if name in t), None)
    where = getattr(known, "__module__", None)
    if known is not None and where != owner.__module__:
        raise ValueError(
            f"two things are called {name!r} in configs: in {where} and "
            f"{owner.__module__}; give one of them another name"
        )
    table[name] = value


def call(made: T) -> T:
    """A class or function whose call a config may write."""
    _enter(CALLS, made.__name__, made, made, VALUES)
    return made


def value(function: T) -> T:
    """A function that a config may name."""
    _enter(VALUES, function.__name__, function, function, CALLS)
    return function


def partial(function: T) -> T:
    """A function that a config may name, or call with all but its first argument."""

    @functools.wraps(function)
    def fixed(*args: Any, **kwargs: Any) -> Any:
        return functools.partial(function, *args, **kwargs)

    value(function)
    _enter(CALLS, function.__name__, function, fixed, VALUES)
    return function


def source(function: T) -> T:
    """A function that makes a data source, which a config may name."""
    _enter(SOURCES, function.__name__, function, function)
    return function


def network(function: T) -> T:
    """A function that makes a network, which a config may name."""
    _enter(NETWORKS, function.__name__, function, function)
    return function


def make(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a call in a config stands for.

    Raises:
      ValueError: for an argument that is not what the annotations say.
    """
    # What has both, a `partial`, is called with all but its first argument.
    first = int(name in VALUES)
    check_call(f"{{}} of {name}", CALLS[name], args, kwargs, first=first)
    return CALLS[name](*args, **kwargs)
