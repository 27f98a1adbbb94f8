"""Images that are decoded as they are read, and mirrored ones."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from distilljax.data.augmented import Augmentation, augmented
from distilljax.data.sources import Sample, Source
from distilljax.runtime import words
from distilljax.runtime.extras import needed

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Pictures that are not read: they are refused, not left out.
_OTHERS = (".tif", ".tiff", ".gif", ".jfif", ".jp2", ".heic", ".heif", ".avif", ".ppm")
_GREY = ("1", "L", "LA", "I", "F")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Folders that archives and storage devices add.
_SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
# What Pillow raises on files that are damaged, or on values that are refused here.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
# Files whose size joins the fingerprint of a folder.
_SIZED = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class ReadSource:
    """Samples that a function reads one by one, on several threads.

    Attributes:
      read: index -> sample.
      length: number of samples.
      sample_shape: see `Source`.
      num_classes: see `Source`.
      fields: see `Source`.
      fingerprint: see `Source`.
      name: how reports and errors call it.
      read_threads: threads of the pipeline that read; 0 takes one a processor.
      class_names: see `Source`.
    """

    read: Callable[[int], Sample] = dataclasses.field(repr=False)
    length: int
    sample_shape: tuple[int, ...]
    num_classes: int | None
    fields: tuple[str, ...]
    fingerprint: str
    name: str
    read_threads: int = 0
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)


@dataclasses.dataclass(frozen=True, eq=False)
class Mirrored:
    """A source with the mirror image of each of its samples behind them.

    Sample ``i + N`` is sample ``i`` with its columns reversed, so that an epoch shows
    both, and which one comes when follows from seed and index like all order.

    Attributes:
      source: the source of ``N`` samples.
      mirrored: fields that are images.
    """

    source: Source
    mirrored: tuple[str, ...] = ("x0",)

    def __len__(self) -> int:
        return 2 * len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = dict(self.source[index % len(self.source)])
        if index >= len(self.source):
            for name in self.mirrored:
                sample[name] = np.ascontiguousarray(sample[name][..., ::-1, :])
        return sample

    @property
    def take(self) -> Callable[[np.ndarray], Sample] | None:
        """Gathers a batch where the source does."""
        gather = getattr(self.source, "take", None)
        return None if gather is None else functools.partial(self._take, gather)

    def _take(self, gather: Callable[..., Sample], indices: np.ndarray) -> Sample:
        sample = gather(indices % len(self.source))
        turned = indices >= len(self.source)
        for name in self.mirrored:
            sample[name][turned] = sample[name][turned][..., ::-1, :]
        return sample

    @property
    def read_threads(self) -> int | None:
        """See `ReadSource`."""
        return getattr(self.source, "read_threads", None)

    @property
    def name(self) -> str:
        """How reports and errors call it."""
        inner = getattr(self.source, "name", type(self.source).__name__)
        return f"mirrored {inner}"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one ``x0``."""
        return self.source.sample_shape

    @property
    def num_classes(self) -> int | None:
        """See `Source`."""
        return self.source.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """See `Source`."""
        return getattr(self.source, "class_names", None)

    @property
    def cond_features(self) -> int | None:
        """Features of ``cond`` where it is embeddings ``[N, d]``."""
        return getattr(self.source, "cond_features", None)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return self.source.fields

    @property
    def fingerprint(self) -> str:
        """See `Source`."""
        return f"mirrored-{self.source.fingerprint}"


def mirrored(source: Source, fields: Sequence[str] = ("x0",)) -> Mirrored:
    """A source and, behind its samples, their mirror images (horizontal flip).

    Args:
      source: images ``[H, W, C]`` or videos.
      fields: fields that are images and turn together.

    Raises:
      ValueError: if the samples are no images, or a field is not there.
    """
    if len(source.sample_shape) < 3:
        raise ValueError(
            "source must hold images [H, W, C] to be mirrored, got samples of shape "
            f"{source.sample_shape}; leave flip out"
        )
    missing = sorted({*fields} - {*source.fields})
    if missing:
        raise ValueError(f"fields {missing} are not in the source's {source.fields}")
    return Mirrored(source, tuple(fields))


def fitted(image: Any, sample_shape: tuple[int, int, int]) -> np.ndarray:
    """A Pillow image as ``x0``: resized to cover the shape, centre cropped, in [-1, 1].

    Args:
      image: an opened image of any size and mode.
      sample_shape: ``(H, W, C)`` with 1, 3 or 4 channels.

    Returns:
      float32 ``[H, W, C]``; bicubic where the size differs. It stands upright as the
      file's EXIF orientation says, lies on white where it is transparent (four channels
      keep their transparency), and 16-bit and floating values are scaled, not cut.

    Raises:
      ValueError: on values whose white is not known.
    """
    pixels = decoded(image, sample_shape)
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def decoded(image: Any, sample_shape: tuple[int, int, int]) -> np.ndarray:
    """`fitted` before its values are scaled: uint8 ``[H, W, C]``."""
    with needed("reading images"):
        from PIL import Image, ImageOps

    height, width, channels = sample_shape
    # JPEG decodes at a fraction of its size, never below twice what is wanted; the
    # sides may be exchanged by the orientation that the file says.
    image.draft(None, (2 * max(height, width),) * 2)
    image = _opaque(_levels(ImageOps.exif_transpose(image)), channels)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    pixels = np.array(image, np.uint8).reshape(sample_shape)
    if channels == 4:
        # What lies under full transparency is seen by nobody.
        pixels[pixels[..., 3] == 0] = (255, 255, 255, 0)
    return pixels


def is_grey(image: Any) -> bool:
    """Whether an opened image has no colours, whatever its depth."""
    return image.mode in _GREY or image.mode.startswith("I;")


def _levels(image: Any) -> Any:
    """An image of 16 or 32 bit a value as one of 8; others as they are.

    Raises:
      ValueError: on values whose white is not known.
    """
    with needed("reading images"):
        from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image, np.float64)
    low, high = float(values.min()), float(values.max())
    white = 1.0 if image.mode == "F" else 65535.0
    if not 0.0 <= low <= high <= white:
        raise ValueError(
            f"an image of mode {image.mode} must have values in [0, {white:g}], got "
            f"{low:g} to {high:g}; save it with 8 bits"
        )
    grey = Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.uint8(255) * (values != clear)))
    return grey


def _opaque(image: Any, channels: int) -> Any:
    """The image in the mode of so many channels, on white where it is transparent."""
    with needed("reading images"):
        from PIL import Image

    if channels == 4 or not image.has_transparency_data:
        return image.convert(_MODES[channels])
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert(_MODES[channels])


def check_image_shape(sample_shape: Sequence[int]) -> tuple[int, int, int]:
    """``(H, W, C)``.

    Raises:
      ValueError: on another rank or number of channels.
    """
    shape = tuple(sample_shape)
    if len(shape) != 3 or shape[2] not in _MODES:
        raise ValueError(
            f"sample_shape of images must be (H, W, C) with C 1, 3 or 4, got {shape}"
        )
    return shape


@words.source
def image_folder(
    path: str | os.PathLike,
    *,
    sample_shape: tuple[int, int, int],
    num_classes: int | None = None,
    flip: bool = False,
    augment: Augmentation | None = None,
    read_threads: int = 0,
) -> Source:
    """Images ``path/<class>/<file>``, or ``path/<file>`` without labels.

    Labels number the class folders in the order of their names, which are the names of
    the classes (``sample --labels=cat``), and samples come in the
    order of class and file name, whatever the file system says. Hidden files and
    folders are no data (``.ipynb_checkpoints``, ``__MACOSX``, ``._name.png``). An image
    is resized to cover ``sample_shape`` and cropped at the centre, see `fitted`.

    Args:
      path: the folder; in a bucket too.
      sample_shape: ``(H, W, C)`` with 1, 3 or 4 channels.
      num_classes: number of class folders; a card says it, so that programs can be
        built without the data.
      flip: adds the mirror images, see `mirrored`.
      augment: EDM's augmentation, see `augmented`.
      read_threads: threads that decode; 0 takes one a processor.

    Returns:
      The source, fields ``x0`` and, with class folders, ``cond``. Its fingerprint holds
      the names of all files and the sizes of 1024 of them.

    Raises:
      ValueError: if there are no images, another number of class folders, images beside
        or below the class folders, or a class folder without images.
    """
    path, shape = epath.Path(path), check_image_shape(sample_shape)
    names, labels, classes = listed(path)
    found = len(classes) or None
    if num_classes is not None and num_classes != found:
        raise ValueError(
            f"num_classes must be the number of class folders in {path}, {found}, got "
            f"{num_classes}"
        )
    source = ReadSource(
        functools.partial(
            _read, path, tuple(names), np.asarray(labels, np.int32), shape
        ),
        len(names),
        shape,
        found,
        ("x0", "cond") if classes else ("x0",),
        _fingerprint(path, names, shape),
        f"image_folder {path}",
        read_threads,
        tuple(classes) or None,
    )
    return augmented(mirrored(source) if flip else source, augment)


def listed(path: epath.Path) -> tuple[list[str], list[int], list[str]]:
    """The images of a folder, in the order of class and file name.

    Args:
      path: see `image_folder`.

    Returns:
      Names below ``path``, a label each (none without class folders), and the classes.

    Raises:
      ValueError: see `image_folder`.
    """
    if not path.is_dir():
        raise ValueError(f"no images at {path}: there is no such folder")
    folders = [p for p in path.iterdir() if not _hidden(p.name) and p.is_dir()]
    inside = {p.name: _images(p) for p in folders}
    classes = sorted(name for name, images in inside.items() if images)
    if classes:
        _check_folder(path, inside)
    names = [f"{c}/{name}" for c in classes for name in inside[c]]
    labels = [i for i, c in enumerate(classes) for _ in inside[c]]
    if not classes:
        names = _images(path)
    others = [n for c in classes or [""] for n in _images(path / c, _OTHERS)]
    if others and (names or classes):
        raise ValueError(
            f"{path} holds {len(others)} pictures of other kinds beside its "
            f"{len(names)} images ({others[0]}), which would be left out; known are "
            f"{', '.join(SUFFIXES)}: convert them, or move them away"
        )
    if not names:
        raise ValueError(
            f"no images at {path}: put them in one folder per class, "
            f"{path}/<class>/<name>, or without classes into {path}; known are "
            f"{', '.join(SUFFIXES)}"
        )
    return names, labels, classes


def _hidden(name: str) -> bool:
    """Whether a file or folder is an editor's or a system's, no data."""
    return name.startswith(".") or name in _SYSTEM


def _images(folder: epath.Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    names = (p.name for p in folder.iterdir())
    return sorted(n for n in names if not _hidden(n) and n.lower().endswith(suffixes))


def _check_folder(path: epath.Path, inside: Mapping[str, Sequence[str]]) -> None:
    """Refuses class folders of which something would be left out without a word."""
    beside = _images(path)
    if beside:
        raise ValueError(
            f"{path} holds class folders and {len(beside)} images beside them "
            f"({beside[0]}), which would be left out; move them into a class folder"
        )
    empty = sorted(name for name, images in inside.items() if not images)
    deeper = [n for n in inside if _deeper(path / n)]
    if deeper:
        raise ValueError(
            f"{path / deeper[0]} holds folders with images, one level too deep, which "
            f"would be left out; images lie in {path}/<class>/<name>"
        )
    if empty:
        raise ValueError(
            f"class folders {empty} of {path} hold no image, so that the labels of "
            "those behind them would shift; put images in, or remove the folders"
        )


def _deeper(folder: epath.Path) -> bool:
    inner = [
        p
        for p in folder.iterdir()
        if not (_hidden(p.name) or p.name.lower().endswith(SUFFIXES)) and p.is_dir()
    ]
    return any(_images(p) or _deeper(p) for p in inner)


def _read(
    path: epath.Path,
    names: tuple[str, ...],
    labels: np.ndarray,
    shape: tuple[int, int, int],
    index: int,
) -> Sample:
    with needed("reading images"):
        from PIL import Image

    file = path / names[index]
    try:
        with file.open("rb") as opened, Image.open(opened) as image:
            sample = {"x0": fitted(image, shape)}
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: {error}") from error
    if len(labels):
        sample["cond"] = labels[index]
    return sample


def _fingerprint(path: epath.Path, names: Sequence[str], shape: tuple[int, ...]) -> str:
    digest = hashlib.blake2b(repr((len(names), shape)).encode(), digest_size=12)
    for name in names:
        digest.update(f"{name}\n".encode())
    for i in range(0, len(names), max(1, len(names) // _SIZED)):
        digest.update(f"{(path / names[i]).stat().length};".encode())
    return digest.hexdigest()
