"""Values of settings against the types that their owner declares.

`check_values` is for the fields of a dataclass, `check_call` for the arguments of what
a config names: a method, a law, a network, a source.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_WORDS = {
    float: "a finite number",
    int: "a whole number",
    bool: "True or False",
    str: "text",
}
_QUOTED = ", as text; leave the quotes out"


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
    text = _QUOTED if isinstance(value, str) else ""
    raise ValueError(f"{name} must be {_WORDS[kind]}, got {value!r}{text}")


def check_call(
    what: str,
    function: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    first: int = 0,
) -> None:
    """Checks arguments against the annotations of what is called with them.

    ``embed="False"`` is true, and ``guidance="2.0"`` fails deep inside a trace; both
    are refused here. What an annotation does not say is left alone, and so are numbers
    that are arrays.

    Args:
      what: of the message, with ``{}`` for the name of the argument.
      function: function or class.
      args: in order.
      kwargs: by name.
      first: number of parameters that come from elsewhere, in front of ``args``.

    Raises:
      ValueError: naming the argument, what it must be and what came.
    """
    hints = _hints(function)
    names = list(inspect.signature(function).parameters)[first:]
    for name, value in {
        **dict(zip(names, args, strict=False)),
        **(kwargs or {}),
    }.items():
        if name in hints and not _fits(hints[name], value):
            text = isinstance(value, str) and _is_number(hints[name])
            raise ValueError(
                f"{what.format(repr(name))} must be {_words(hints[name])}, "
                f"got {value!r}{_QUOTED if text else ''}"
            )


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:
        # Of names that are imported for type checkers alone.
        return {}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _is_number(hint: Any) -> bool:
    return any(kind in (int, float, bool) for kind in _kinds(hint))


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a kind; true where the kind is not understood."""
    if len(_kinds(hint)) > 1:
        return any(_fits(kind, value) for kind in _kinds(hint))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (None, type(None)):
        return value is None
    if hint in _WORDS:
        return _is_of(hint, value)
    if origin is typing.Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if inner[-1:] == (Ellipsis,):
            return all(_fits(inner[0], part) for part in value)
        return len(inner) == len(value) and all(map(_fits, inner, value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        # A ConfigDict is one in all but its type.
        return isinstance(value, Mapping) or hasattr(value, "items")
    if Callable in (hint, origin) or (_is_protocol(hint) and _is_called(hint)):
        return callable(value)
    if _is_protocol(hint):
        plain = (numbers.Real, str, bytes, Mapping, types.NoneType)
        return not isinstance(value, plain) and type(value) not in (tuple, list)
    if isinstance(hint, type) and hint.__module__.startswith("distilljax."):
        # A config writes a named tuple as a list.
        return isinstance(value, (tuple, list) if issubclass(hint, tuple) else hint)
    return True


def _is_of(kind: type, value: Any) -> bool:
    """Whether a value is a number, a text or a bool; arrays may be numbers."""
    if kind in (int, float) and getattr(value, "shape", None) == ():
        return value.dtype.kind in "iu" or (kind is float and value.dtype.kind != "b")
    try:
        _number(kind, value, "")
    except ValueError:
        return False
    return True


def _is_protocol(hint: Any) -> bool:
    return getattr(hint, "_is_protocol", False)


def _is_called(hint: type) -> bool:
    return any("__call__" in vars(base) for base in hint.__mro__)


def _words(hint: Any) -> str:
    """What a value must be."""
    if len(_kinds(hint)) > 1:
        return " or ".join(map(_words, _kinds(hint)))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (None, type(None)):
        return "None"
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple and inner[-1:] == (Ellipsis,):
        return f"a list, each {_words(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} values ({', '.join(map(_words, inner))})"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if Callable in (hint, origin):
        return "a function"
    told = (inspect.getdoc(hint) or "").partition("\n")[0].strip(".").replace("`", "")
    return f"a {hint.__name__}" + (f", {told}" if _is_protocol(hint) and told else "")
