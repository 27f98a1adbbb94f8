"""Parameters alone, as one ``.npz`` file per role: to start from, to share."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath

from distilljax import storage
from distilljax.training import distributed
from distilljax.training.state import leaves


def save_params(path: str | os.PathLike, params: Any) -> epath.Path:
    """Writes nested dicts of arrays; the file is whole or absent.

    Of several processes all call it and the first one writes: a leaf that is spread
    over them is gathered.

    Args:
      path: file, ending in ``.npz``.
      params: nested dicts of arrays.

    Returns:
      The path.
    """
    named = leaves(params).items()
    if distributed.is_first():
        flat = {name: distributed.whole(leaf) for name, leaf in named}
        storage.save_npz(path, flat)
    else:
        for _, leaf in named:
            distributed.whole(leaf)
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
    out: dict[str, Any] = {}
    try:
        with path.open("rb") as file, np.load(file) as found:
            flat = dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged ({error}); make the call that trained the run again: "
            "it writes the file from the newest checkpoint"
        ) from error
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return out
