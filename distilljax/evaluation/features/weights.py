"""Named arrays from files that the user gives."""

from __future__ import annotations

import os
import pathlib

from numpy.typing import NDArray

from distilljax.runtime.extras import needed
from distilljax.runtime.storage import load_arrays


def read_weights(path: str | os.PathLike) -> dict[str, NDArray]:
    """Named arrays of a ``.safetensors`` or ``.npz`` file.

    Args:
      path: the file. A ``.pth`` of torch is converted once with
        ``safetensors.torch.save_file(torch.load(path), "weights.safetensors")``.

    Returns:
      ``{name: array}``.

    Raises:
      ValueError: no file, another ending, or a damaged file.
      ModuleNotFoundError: ``.safetensors`` without the package of the extra ``eval``.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}: give the path of a file that is there")
    if path.suffix == ".npz":
        return load_arrays(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"weights must be .safetensors or .npz, got {path.name}; convert a file of "
            "torch with safetensors.torch.save_file(torch.load(path), name)"
        )
    with needed("reading .safetensors"):
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); write it again") from error
