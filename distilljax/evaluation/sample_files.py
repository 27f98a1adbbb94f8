"""Where samples are written: the arrays always, and pictures for people.

| ``out`` | arrays | pictures |
|---|---|---|
| ``x.npz`` | ``x``, ``label``, ``record`` | a grid in ``x.png`` |
| ``x.npy`` | ``x``; the others in ``x.npy.json`` | a grid in ``x.png`` |
| ``x.png``, ``x.jpg`` | ``x.npz`` beside it | a grid, the file itself |
| ``folder/`` (or no ending) | ``samples.npz`` in it | ``000000.png``, one a sample |

The record is JSON: the range of the values, and what the samples were made with.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from numpy.typing import NDArray

from distilljax.evaluation.plots import image_grid, save_picture
from distilljax.runtime import storage
from distilljax.runtime.labels import columns_of, named

ARRAYS = (".npz", ".npy")
PICTURES = (".png", ".jpg", ".jpeg")
# The arrays among the pictures of a folder.
INSIDE = "samples.npz"
# Pictures of a grid.
SHOWN = 100
_CHANNELS = (1, 3)
# Bytes of the longest name of file systems.
_LONGEST = 255


class Target(NamedTuple):
    """Where samples go.

    Attributes:
      arrays: the ``.npz`` or ``.npy``.
      picture: a grid of the first of them, or None.
      folder: of one picture a sample, or None.
    """

    arrays: epath.Path
    picture: epath.Path | None = None
    folder: epath.Path | None = None

    def says(self, count: int) -> str:
        """Where the pictures of so many samples are, in words; "" if nowhere."""
        if self.folder is not None:
            return f"a picture of each in {self.folder}"
        if self.picture is None:
            return ""
        what = "them" if count <= SHOWN else f"the first {SHOWN}"
        return f"a picture of {what} in {self.picture}"


def range_of(sample_shape: Sequence[int], images: bool | None = None) -> str:
    """The range of a student's samples, as `read_samples` spells it.

    Args:
      sample_shape: shape of one sample.
      images: whether they are images in [-1, 1]; default: with the axes of images or
        videos, and 1 or 3 channels.
    """
    if images is None:
        images = _drawn(sample_shape, videos=True)
    return "[-1, 1]" if images else "none"


def _drawn(shape: Sequence[int], *, videos: bool = False) -> bool:
    ranks = (3, 4) if videos else (3,)
    return len(shape) in ranks and shape[-1] in _CHANNELS


def placed(out: str | os.PathLike, sample_shape: Sequence[int]) -> Target:
    """Where samples of a shape go, by the name and the shape.

    Args:
      out: see the module's table.
      sample_shape: shape of one sample.

    Raises:
      ValueError: on an ending that holds no samples, and pictures of what is none.
    """
    text, path = os.fspath(out), epath.Path(out)
    ending, drawn = path.suffix, _drawn(sample_shape)
    ending = ending.lower() if ending.lower() in PICTURES else ending
    folder = text.endswith(("/", os.sep)) or not ending or path.is_dir()
    if not folder and ending not in (*ARRAYS, *PICTURES):
        raise ValueError(
            f"out must end in {', '.join((*ARRAYS, *PICTURES))}, or in / for a folder "
            f"with one PNG a sample, got {text!r}"
        )
    if (folder or ending in PICTURES) and not drawn:
        raise ValueError(
            f"out {text!r} asks for pictures, and samples of shape "
            f"{tuple(sample_shape)} are none ([H, W, 1] or [H, W, 3] are); write "
            "arrays: --out=FILE.npz or FILE.npy"
        )
    if folder:
        return Target(path / INSIDE, folder=path)
    if ending in PICTURES:
        return Target(path.with_suffix(".npz"), path)
    return Target(path, path.with_suffix(".png") if drawn else None)


def target(out: str | os.PathLike, sample_shape: Sequence[int]) -> Target:
    """`placed`, and that nothing is in the way; checked before a sample is made.

    Args:
      out: see the module's table.
      sample_shape: shape of one sample.

    Raises:
      ValueError: see `placed`; and on other files in the place of those that come with
        what was asked for.
    """
    found, path = placed(out, sample_shape), epath.Path(out)
    if found.folder is not None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"out {os.fspath(out)!r} asks for a folder, and is a file")
        if path.is_dir() and not found.arrays.exists() and any(path.iterdir()):
            raise ValueError(
                f"folder {os.fspath(out)!r} is not empty and holds no samples of ours "
                f"({INSIDE}); choose another folder, so that pictures do not mix"
            )
    elif found.picture == path:
        _check_ours(found.arrays, path)
    return found


def _check_ours(beside: epath.Path, path: epath.Path) -> None:
    """Refuses to write over a file that nobody named and that holds something else."""
    if not beside.exists():
        return
    try:
        found = set(storage.load_arrays(beside))
    except ValueError:
        found = {"nothing that can be read"}
    if not ("record" in found or found <= {"x", "label"}):
        raise ValueError(
            f"the samples of {path} go into {beside}, which is there and holds "
            f"{', '.join(sorted(found))}; choose another name"
        )


def parts_of(out: str | os.PathLike) -> epath.Path:
    """The folder of the finished batches of an interrupted call."""
    path = epath.Path(out)
    name = f"{path.name}.parts"
    if len(name.encode()) > _LONGEST:
        digest = hashlib.blake2b(path.name.encode(), digest_size=8).hexdigest()
        name = f"{digest}.parts"
    return path.with_name(name)


def write(
    to: Target,
    x: NDArray,
    labels: Any = None,
    record: Mapping[str, Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes samples; each file whole or not at all, the arrays first.

    Args:
      to: see `target`.
      x: samples ``[N, *sample_shape]``.
      labels: ``[N]``, or None.
      record: what they are, JSON values.
      class_names: of the labels, which a grid says above its images.
    """
    x, text = np.asarray(x, np.float32), json.dumps(dict(record or {}))
    fields: dict[str, Any] = {"x": x}
    if labels is not None:
        fields["label"] = np.asarray(labels, np.int32)
    if to.arrays.suffix == ".npy":
        with storage.replacing(to.arrays) as file:
            np.save(file, x)
        known = {"record": dict(record or {})}
        if labels is not None:
            known["label"] = fields["label"].tolist()
        storage.write_atomic(_sidecar(to.arrays), json.dumps(known) + "\n")
    else:
        if record is not None:
            fields["record"] = np.str_(text)
        storage.save_npz(to.arrays, fields, compressed=True)
    shades = np.clip(x, -1.0, 1.0)
    if to.picture is not None:
        shown = None if labels is None else np.asarray(labels)[:SHOWN]
        columns = min(10, len(x)) if shown is None else columns_of(shown)
        captions = named(shown, class_names)
        grid = image_grid(shades[:SHOWN], columns, 4, captions=captions)
        save_picture(to.picture, grid, note=to.arrays.name)
    if to.folder is not None:
        _write_folder(to.folder, shades)


def _write_folder(folder: epath.Path, shades: NDArray) -> None:
    pixels = np.rint((shades + 1.0) * 127.5).astype(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    names = {f"{i:06d}.png" for i in range(len(pixels))}
    for i, picture in enumerate(pixels):
        save_picture(folder / f"{i:06d}.png", picture)
    for left in folder.iterdir():
        # Of a call with more samples before.
        if re.fullmatch(r"\d{6,}\.png", left.name) and left.name not in names:
            left.unlink()


def _sidecar(path: epath.Path) -> epath.Path:
    return path.with_name(f"{path.name}.json")


def read_record(found: Mapping[str, NDArray]) -> dict[str, Any]:
    """What the arrays of an ``.npz`` say of themselves; empty for other programs'."""
    return _mapping(str(found["record"])) if "record" in found else {}


def read_sidecar(path: epath.Path) -> tuple[dict[str, Any], NDArray | None]:
    """Record and labels of an ``.npy`` that `write` wrote; empty for others."""
    beside = _sidecar(path)
    if not beside.is_file():
        return {}, None
    found = _mapping(beside.read_bytes().decode(errors="replace"))
    record, labels = found.get("record"), found.get("label")
    if not isinstance(record, dict):
        return {}, None
    return record, None if labels is None else np.asarray(labels)


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
