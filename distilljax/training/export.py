"""Parameters alone, as one ``.npz`` file per role: to start from, to share."""

from __future__ import annotations

import json
import os
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
      params: nested dicts and lists of arrays of any type; text and whole numbers as
        keys.

    Returns:
      The path.
    """
    paths = [_steps(way) for way, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    flat = [distributed.whole(leaf) for leaf in jax.tree.leaves(params)]
    if distributed.is_first():
        storage.save_npz(path, _written(paths, flat))
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


def _written(paths: list[list[Any]], flat: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What an ``.npz`` can hold: leaves by name, and what their names do not say."""
    out, types, tree = {}, {}, {}
    for i, (way, leaf) in enumerate(zip(paths, flat, strict=True)):
        name = "/".join(str(_key(step)) for step in way)
        if way != [[key] for key in name.split("/")] or name == _NOTE:
            name = f"{name}#{i}"
            tree[name] = way
        if leaf.dtype.kind == "V":  # bfloat16 and the like, unknown to numpy's files
            types[name] = leaf.dtype.name
            leaf = leaf.view(f"u{leaf.dtype.itemsize}")
        out[name] = leaf
    if types or tree:
        note = json.dumps({"types": types, "tree": tree}).encode()
        out[_NOTE] = np.frombuffer(note, np.uint8)
    return out


def _read(path: epath.Path, flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tree of what `_written` made."""
    note: dict[str, Any] = {}
    if _NOTE in flat:
        note = json.loads(flat.pop(_NOTE).tobytes())
    root: dict[Any, Any] = {}
    for name, leaf in flat.items():
        if name in note.get("types", {}):
            leaf = leaf.view(jnp.dtype(note["types"][name]))
        elif leaf.dtype.kind == "V":
            raise ValueError(
                f"{path}: {name!r} has a type that numpy does not know ({leaf.dtype}); "
                "write the file again with save_params, which says what it is"
            )
        way = note.get("tree", {}).get(name, [[key] for key in name.split("/")])
        node = root
        for step in way[:-1]:
            node = node.setdefault(_key(step), {})
        node[_key(way[-1])] = leaf
    return _lists(root)


class _Index(int):
    """A place in a list, apart from a whole number as key."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and int(self) == int(other)

    def __hash__(self) -> int:
        return hash(("index", int(self)))


def _key(step: Any) -> Any:
    return step[0] if isinstance(step, list) else _Index(step)


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    inner = {key: _lists(value) for key, value in node.items()}
    if inner and all(isinstance(key, _Index) for key in inner):
        return [inner[key] for key in sorted(inner, key=int)]
    return inner
