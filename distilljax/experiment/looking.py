"""What data of one's own is: which source reads it, and how much of what there is."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
from etils import epath

from distilljax import data
from distilljax.data import images
from distilljax.runtime.extras import needed
from distilljax.runtime.labels import names_of

# Files whose size and mode are looked at.
_PROBED = 200
# Sides that a folder of larger pictures is brought to.
_SIDES = (8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
      section: the source as a card writes it.
      count: number of samples.
      sample_shape: of one.
      num_classes: of the labels, or None.
      class_names: by label, or None.
      per_class: samples of each class, where that is cheap to know.
      fields: of a sample.
      images: whether samples are pictures in [-1, 1].
      note: what was decided on the way, or nothing.
    """

    section: dict[str, Any]
    count: int
    sample_shape: tuple[int, ...]
    num_classes: int | None
    class_names: tuple[str, ...] | None
    per_class: tuple[int, ...] | None
    fields: tuple[str, ...]
    images: bool
    note: str = ""

    def words(self) -> str:
        """``812 images of 32 x 32 x 3 in 2 classes``."""
        what = "images" if self.images else "samples"
        shape = " x ".join(map(str, self.sample_shape))
        classes = f" in {self.num_classes} classes" if self.num_classes else ""
        return f"{self.count} {what} of {shape}{classes}"


def look(path: str | os.PathLike, *, size: int | None = None) -> Look:
    """Looks at a folder of images, an ``.npz`` or ``.npy`` file, or records.

    Args:
      path: what a source reads, see docs/data.md.
      size: side of the images of a folder; default the largest of 8, 16, 32, 64 that
        most of them reach.

    Returns:
      What is there.

    Raises:
      ValueError: if there is nothing that a source reads, or a size for data that has
        one.
    """
    path = epath.Path(path)
    packed = (path / "data.json").is_file() or path.name.endswith(".array_record")
    filed = path.suffix in (".npz", ".npy") or (path / "x0.npy").is_file()
    if size is not None and (packed or filed):
        raise ValueError(f"size is for image folders; the samples of {path} have one")
    if packed:
        return _of_source(data.records(path), {"name": "records", "path": str(path)})
    if filed:
        return _of_arrays(path)
    if not path.is_dir():
        raise ValueError(
            f"no data at {path}: pass a folder of images (in a folder for each class, "
            "or without labels), an .npz or .npy file with x0, or a folder of records"
        )
    return _of_folder(path, size)


def _of_source(source: Any, section: dict[str, Any], note: str = "") -> Look:
    shape = tuple(source.sample_shape)
    if "x0" not in source.fields:
        raise ValueError(
            f"{section['path']} holds no samples x0 to train a teacher on, only "
            f"{', '.join(source.fields)}"
        )
    labelled = {} if source.num_classes is None else {"num_classes": source.num_classes}
    columns = getattr(source, "columns", {})
    per_class = None
    if source.num_classes is not None and "cond" in columns:
        counts = np.bincount(columns["cond"], minlength=source.num_classes)
        per_class = tuple(map(int, counts))
    unbounded = section.get("images") is False
    return Look(
        {**section, "sample_shape": shape, **labelled},
        len(source),
        shape,
        source.num_classes,
        names_of(source),
        per_class,
        tuple(source.fields),
        len(shape) == 3 and shape[-1] in (1, 3, 4) and not unbounded,
        note,
    )


def _of_arrays(path: epath.Path) -> Look:
    section: dict[str, Any] = {"name": "npz", "path": str(path)}
    x0 = _samples(path)
    if x0 is None:
        # Says what is wrong with the file.
        data.npz(path, sample_shape=())
        raise AssertionError("unreachable")
    note = ""
    if x0.ndim > 2 and (x0.ndim != 4 or x0.shape[-1] not in (1, 3)):
        beyond = x0.ndim != 4 or x0.shape[-1] != 4 or np.abs(x0).max() > 1
        if beyond:
            section["images"] = False
            note = "samples are no pictures in [-1, 1] and are taken as they are"
    source = data.npz(path, sample_shape=x0.shape[1:], images=section.get("images"))
    return _of_source(source, section, note)


def _samples(path: epath.Path) -> np.ndarray | None:
    """``x0``, None where the file has none."""
    from distilljax.runtime import storage

    file = path / "x0.npy" if path.is_dir() else path
    if not file.is_file():
        return None
    if file.suffix == ".npy":
        return next(iter(storage.load_arrays(file).values()))
    return storage.load_arrays(file, ("x0",)).get("x0")


def _of_folder(path: epath.Path, size: int | None) -> Look:
    with needed("reading images"):
        from PIL import Image

    names, labels, classes = images.listed(path)
    sides, channels = [], 1
    for name in names[:: max(1, len(names) // _PROBED)]:
        try:
            with (path / name).open("rb") as file, Image.open(file) as image:
                sides.append(min(image.size))
                channels = channels if images.is_grey(image) else 3
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path / name}: {error}") from error
    note = ""
    if size is None:
        # Nine of ten are at least as large.
        most = int(np.quantile(sides, 0.1, method="lower"))
        size = max([side for side in _SIDES if side <= most] or _SIDES[:1])
        if size != max(sides) or size != min(sides):
            note = (
                f"files have sides from {min(sides)} to {max(sides)}; images are "
                f"brought to {size} x {size} and cropped at the centre, --size takes "
                "another side"
            )
    section: dict[str, Any] = {
        "name": "image_folder",
        "path": str(path),
        "sample_shape": (size, size, channels),
    }
    if classes:
        section["num_classes"] = len(classes)
    shape = images.check_image_shape((size, size, channels))
    counts = tuple(map(int, np.bincount(labels))) if classes else None
    known = tuple(classes) or None
    fields = ("x0", "cond") if classes else ("x0",)
    number = len(classes) or None
    return Look(section, len(names), shape, number, known, counts, fields, True, note)
