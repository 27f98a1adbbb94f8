"""Parameters alone, as one ``.npz`` file per role: to start from, to share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distilljax.runtime import storage
from distilljax.training import distributed

# Entry of a file that says what the names of its leaves do not.
_NOTE = "__tree__"


def save_params(path: str | os.PathLike, params: Any) -> epath.Path:
    """Writes nested dicts of arrays; the file is whole or absent.

    Of several processes all call it and the first one writes: a leaf that is spread
    over them is gathered.

    Args:
      path: file, ending in ``.npz``.
      params: nested dicts, lists and tuples of arrays of any type, empty ones and None
        too; text and whole numbers as keys. Other nodes come back as dicts.

    Returns:
      The path.
    """
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = [_steps(way) for way, _ in named]
    for way, leaf in named:
        if jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            where = jax.tree_util.keystr(way)
            raise ValueError(
                f"parameters are stored as numbers, and {where} is a random key; pass "
                "jax.random.key_data(key)"
            )
    flat = [distributed.whole(leaf) for _, leaf in named]
    if distributed.is_first():
        storage.save_npz(path, _written(paths, flat, list(_bare(params, []))))
    return epath.Path(path)


def load_params(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `save_params` wrote.

    Raises:
      ValueError: if the file does not exist or cannot be read.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise ValueError(
            f"no parameters at {path}: train that run to its end first, or check the "
            "folder's name"
        )
    flat = storage.load_arrays(
        path,
        mend="make the call that trained the run again: it writes the file from the "
        "newest checkpoint",
    )
    return _read(path, flat)


def _steps(path: tuple[Any, ...]) -> list[Any]:
    """The way to a leaf: ``["key"]`` of a dict or ``0`` of a list or tuple."""
    out: list[Any] = []
    for step in path:
        if isinstance(step, jax.tree_util.SequenceKey):
            out.append(step.idx)
            continue
        key = getattr(step, "key", getattr(step, "name", None))
        if not isinstance(key, (str, int)):
            raise ValueError(
                f"parameters are stored by text and whole numbers as keys, got {key!r} "
                f"in {jax.tree_util.keystr(path)}; rename it"
            )
        out.append([key])
    return out


def _bare(node: Any, way: list[Any]) -> Iterator[tuple[list[Any], str]]:
    """What leaves do not tell of a tree: tuples, and what holds no leaf."""
    if node is None or (isinstance(node, (Mapping, list, tuple)) and not node):
        yield way, "None" if node is None else type(node).__name__
    elif isinstance(node, Mapping):
        for key, inner in node.items():
            yield from _bare(inner, [*way, [key]])
    elif type(node) in (list, tuple):
        if type(node) is tuple:
            yield way, "tuple"
        for i, inner in enumerate(node):
            yield from _bare(inner, [*way, i])


def _written(
    paths: list[list[Any]],
    flat: list[np.ndarray],
    bare: list[tuple[list[Any], str]],
) -> dict[str, np.ndarray]:
    """What an ``.npz`` can hold: leaves by name, and what their names do not say."""
    out, types, tree = {}, {}, {}
    for i, (way, leaf) in enumerate(zip(paths, flat, strict=True)):
        name = "/".join(str(_key(step)) for step in way)
        plain = way == [[key] for key in name.split("/")]
        if not plain or name == _NOTE or "\0" in name:
            name = f"{name.partition(chr(0))[0]}#{i}"
            tree[name] = way
        if leaf.dtype.kind == "V":  # bfloat16 and the like, unknown to numpy's files
            types[name] = leaf.dtype.name
            leaf = leaf.view(f"u{leaf.dtype.itemsize}")
        out[name] = leaf
    if types or tree or bare:
        note = json.dumps({"types": types, "tree": tree, "bare": bare}).encode()
        out[_NOTE] = np.frombuffer(note, np.uint8)
    return out


def _read(path: epath.Path, flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tree of what `_written` made.

    Raises:
      ValueError: on a file that is not of its making.
    """
    try:
        return _tree(flat)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds no parameters as save_params writes them ({error})"
        ) from error


def _tree(flat: dict[str, np.ndarray]) -> Any:
    note: dict[str, Any] = {}
    if _NOTE in flat:
        note = json.loads(flat.pop(_NOTE).tobytes())
    # Everything lies below one key, since a leaf alone is a tree too.
    root: dict[Any, Any] = {_NOTE: {}}
    for name, leaf in flat.items():
        if name in note.get("types", {}):
            leaf = leaf.view(jnp.dtype(note["types"][name]))
        elif leaf.dtype.kind == "V":
            raise ValueError(
                f"{name!r} has a type that numpy does not know ({leaf.dtype}); write "
                "the file again with save_params, which says what it is"
            )
        way = note.get("tree", {}).get(name, [[key] for key in name.split("/")])
        *above, last = [_NOTE, *map(_key, way)]
        node = root
        for key in above:
            node = node.setdefault(key, {})
        if last in node and way:
            raise ValueError(f"{name!r} is an array and holds others")
        node[last] = leaf
    kinds = {tuple(map(_key, way)): kind for way, kind in note.get("bare", [])}
    for keys in kinds:
        node = root
        for key in (_NOTE, *keys):
            node = node.setdefault(key, {})
    return _finished(root[_NOTE], (), kinds)


def _finished(node: Any, way: tuple[Any, ...], kinds: Mapping[Any, str]) -> Any:
    """The node with its lists, tuples and None, which until now are dicts."""
    kind = kinds.get(way)
    if kind == "None" or not isinstance(node, dict):
        return None if kind == "None" else node
    inner = {key: _finished(value, (*way, key), kinds) for key, value in node.items()}
    listed = inner and all(isinstance(key, _Index) for key in inner)
    if not (listed or kind in ("list", "tuple")):
        return inner
    row = [inner[key] for key in sorted(inner, key=int)]
    return tuple(row) if kind == "tuple" else row


class _Index(int):
    """A place in a list, apart from a whole number as key."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and int(self) == int(other)

    def __hash__(self) -> int:
        return hash(("index", int(self)))


def _key(step: Any) -> Any:
    return step[0] if isinstance(step, list) else _Index(step)
