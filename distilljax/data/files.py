"""Sources from numpy's files."""

from __future__ import annotations

import os
import zipfile

import numpy as np
from etils import epath

from distilljax.data.augmented import Augmentation, augmented
from distilljax.data.images import mirrored
from distilljax.data.sources import Source, arrays
from distilljax.runtime import storage, words

# Fields that methods read beside x0.
_FIELDS = ("cond", "eps", "y", "weight")
# Names of the classes, one a label.
_NAMES = "class_names"


def load_npz(
    path: str | os.PathLike,
    needed: tuple[str, ...],
    what: str,
    names: tuple[str, ...] | None = None,
) -> tuple[epath.Path, dict[str, np.ndarray]]:
    """The arrays of an ``.npz``, in memory; an ``.npy`` is the one that is needed.

    Args:
      path: the file.
      needed: arrays that it must hold.
      what: what to write into it where there is none.
      names: the arrays that are read; None reads all.

    Raises:
      ValueError: if it is not there, damaged or lacks an array.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise ValueError(f"no data at {path}: write {what} into it with np.savez")
    found = storage.load_arrays(path, names)
    if path.suffix == ".npy":
        found = dict(zip(needed, found.values(), strict=False))
    for name in needed:
        if name not in found:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                has = sorted(n.removesuffix(".npy") for n in archive.namelist())
            raise ValueError(f"{path} must hold {name!r}, it has {has}")
    return path, found


def read_fields(
    path: str | os.PathLike, names: tuple[str, ...], who: str
) -> dict[str, np.ndarray]:
    """The fields that samples are made from, of a file that a user named for them.

    Args:
      path: ``.npz`` with all of the fields, or an ``.npy`` where it is one.
      names: the fields that are read.
      who: what reads them, for messages.

    Raises:
      ValueError: if nothing is read, the file is of another kind, or a field is not in
        it; says which are.
    """
    path, wanted = epath.Path(path), ", ".join(map(repr, names))
    if not names:
        raise ValueError(
            f"{who} reads no data ({path} was given): it starts from noise, and takes "
            "labels (--labels) if it has classes; leave --data out"
        )
    how = f"np.savez(path, {', '.join(f'{name}=...' for name in names)})"
    if path.suffix == ".npy" and len(names) == 1 and path.is_file():
        return {names[0]: np.asarray(next(iter(storage.load_arrays(path).values())))}
    if path.suffix != ".npz" or not path.is_file():
        what = (
            "a folder" if path.is_dir() else f"a file {path.suffix or 'of no ending'}"
        )
        what = what if path.exists() else "not there"
        raise ValueError(
            f"{path} is {what}: {who} reads the field{'s'[: len(names) > 1]} {wanted} "
            f"of an .npz file, a row for each sample; write it with {how}"
        )
    found = load_npz(path, (), "", names)[1]
    for name in names:
        if name not in found:
            has = sorted(storage.load_arrays(path)) or ["nothing"]
            raise ValueError(
                f"{path} must hold {wanted}, which {who} reads, a row for each sample; "
                f"it has {', '.join(has)}; write it with {how}"
            )
    return found


def _load_folder(path: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of a folder's ``.npy`` files; on local disk they stay there."""
    found = {}
    for name in ("x0", *_FIELDS, _NAMES):
        if (file := path / f"{name}.npy").is_file():
            found |= storage.load_arrays(file)
    if "x0" not in found:
        raise ValueError(
            f"{path} must hold x0.npy, and cond.npy if there are conditions; it has "
            f"{sorted(file.name for file in path.glob('*.npy'))}"
        )
    return found


@words.source
def npz(
    path: str | os.PathLike,
    *,
    sample_shape: tuple[int, ...],
    num_classes: int | None = None,
    images: bool | None = None,
    flip: bool = False,
    augment: Augmentation | None = None,
) -> Source:
    """Samples ``x0`` and, if it is there, ``cond`` of numpy's files.

    Args:
      path: ``.npz`` with ``x0 [N, *sample_shape]``, floating, and labels or embeddings
        ``cond [N, ...]``, read into memory; or a folder with ``x0.npy`` and
        ``cond.npy``, which are memory-mapped on local disk (float32; other types are
        converted in memory); or one ``.npy``, which is then ``x0``.
      sample_shape: what the file must hold; a card says it, so that programs can be
        built without the data.
      num_classes: see `arrays`.
      images: see `arrays`; False for latents.
      flip: adds the mirror images, see `mirrored`.
      augment: EDM's augmentation, see `augmented`.

    Returns:
      The source, with the fields ``x0``, and ``cond``, ``eps``, ``y`` and ``weight``
      where the file has them; texts ``class_names`` name its labels.

    Raises:
      ValueError: if the file is not there, holds no ``x0`` or samples of another shape,
        and where `arrays` does.
    """
    path = epath.Path(path)
    if path.is_dir():
        found = _load_folder(path)
    else:
        shape = ", ".join(map(str, sample_shape))
        what = f"x0 [N, {shape}] (images in [-1, 1], or latents) and cond [N]"
        path, found = load_npz(path, ("x0",), what, ("x0", *_FIELDS, _NAMES))
    x0 = found.pop("x0")
    if x0.shape[1:] != tuple(sample_shape):
        raise ValueError(
            f"{path}: x0 must be [N, {', '.join(map(str, sample_shape))}], got "
            f"{x0.shape}"
        )
    rest = {name: found[name] for name in (*_FIELDS, _NAMES) if name in found}
    source = arrays(x0, num_classes=num_classes, images=images, name=path.stem, **rest)
    return augmented(mirrored(source) if flip else source, augment)
