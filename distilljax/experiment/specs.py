"""Values of configs written as text: ``"LogNormal(-1.0, 1.4)"``.

Configs hold plain values, so that they print, compare and travel as JSON. Laws, grids,
schedules, paths, solvers, metrics and transforms are written as the Python call that
makes them; only what registered itself (`distilljax.words`) can be named or called.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

# Imported for what they register.
from distilljax import data, losses, methods  # noqa: F401
from distilljax.core import draws  # noqa: F401
from distilljax.diffusion import clocks, paths, sampler, solvers, times  # noqa: F401
from distilljax.runtime import words
from distilljax.runtime.errors import check_finite, unknown


def names() -> tuple[str, ...]:
    """All names that a config may write."""
    return tuple(sorted({*words.CALLS, *words.VALUES}))


def parse(text: str) -> Any:
    """Reads a value.

    Args:
      text: a Python literal, a name of `names`, or a call of one with such arguments.

    Returns:
      The value.

    Raises:
      ValueError: if it is anything else; names what exists.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read {text!r}: {error.msg}") from error
    try:
        return _read(tree, text)
    except TypeError as error:
        # Of a call, the sign of a text, the key of a mapping.
        raise ValueError(f"in {text!r}: {error}") from error


def _read(node: ast.AST, text: str) -> Any:
    if isinstance(node, ast.Constant):
        check_finite(f"a number in {text!r}", node.value)
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_read(item, text) for item in node.elts)
    if isinstance(node, ast.Dict):
        keys = [_read(key, text) for key in node.keys if key is not None]
        return dict(zip(keys, (_read(v, text) for v in node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_read(node.operand, text)
    if isinstance(node, ast.Name):
        if node.id not in words.VALUES:
            raise ValueError(f"in {text!r}: " + unknown("name", node.id, names()))
        return words.VALUES[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        args = [_read(arg, text) for arg in node.args]
        kwargs = {k.arg: _read(k.value, text) for k in node.keywords if k.arg}
        if name not in words.CALLS:
            raise ValueError(f"in {text!r}: " + unknown("name", name, names()))
        return words.make(name, args, kwargs)
    raise ValueError(
        f"cannot read {text!r}: only literals and calls of known names: {names()}"
    )


def resolve(value: Any) -> Any:
    """A config value: text that is a known name or call is read, the rest is kept.

    Lists become tuples and mappings are resolved recursively.
    """
    if isinstance(value, str):
        head = value.strip().split("(", 1)[0]
        known = head in words.CALLS or head in words.VALUES
        return parse(value) if "(" in value or known else value
    if isinstance(value, Mapping):
        return {name: resolve(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(resolve(item) for item in value)
    return value
