"""Sources of samples: numpy arrays in memory, checked once, at the start.

A source is random access over samples and knows their shape, fields and number of
classes. Everything here also has ``take(indices)``, which gathers a batch without a
Python loop; a source of one's own (a database, files) may leave it out, and its items
are then read by ``read_threads`` threads if it has such an attribute.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from distilljax.runtime import words
from distilljax.runtime.extras import needed
from distilljax.runtime.labels import names_of

Sample = dict[str, np.ndarray]

# Rows looked at together in the checks, so that a memory-mapped array stays on disk.
_CHUNK_BYTES = 64 * 2**20


class Source(Protocol):
    """What the pipeline and the trainer ask of data.

    Attributes:
      sample_shape: shape of one ``x0``.
      num_classes: labels in ``cond`` are ``0 .. num_classes - 1``; None without labels.
      fields: names of the fields of a sample; ``x0`` is among them unless the source
        serves methods without data.
      fingerprint: short text that is equal exactly when the data is.

    A source whose classes have names says them as ``class_names``, by label.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    @property
    def sample_shape(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int | None: ...

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def fingerprint(self) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Samples in memory; build one with `arrays`, which checks them.

    Two are equal when their contents are, whatever their names.

    Attributes:
      columns: field -> array ``[N, ...]``.
      num_classes: see `Source`.
      name: how reports call it.
      shape: `Source.sample_shape` where there is no ``x0``.
      images: whether ``x0`` was checked to be images in [-1, 1]; None: not said.
      class_names: see `Source`.
    """

    columns: Mapping[str, np.ndarray]
    num_classes: int | None = None
    name: str = "arrays"
    shape: tuple[int, ...] | None = None
    images: bool | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> Sample:
        return {k: np.array(v[index]) for k, v in self.columns.items()}

    def take(self, indices: np.ndarray) -> Sample:
        """Samples at ``indices [n]`` as a dict of fresh arrays ``[n, ...]``."""
        return {k: np.take(v, indices, axis=0) for k, v in self.columns.items()}

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one ``x0``."""
        return self.columns["x0"].shape[1:] if self.shape is None else self.shape

    @property
    def cond_features(self) -> int | None:
        """Features of ``cond`` where it is embeddings ``[N, d]``."""
        cond = self.columns.get("cond")
        if cond is None or cond.dtype.kind != "f" or cond.ndim != 2:
            return None
        return cond.shape[1]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(self.columns)

    @property
    def fingerprint(self) -> str:
        """Digest of names, types, shapes and contents; computed at first use."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        known = f"{self.num_classes}" + ("" if self.shape is None else f"{self.shape}")
        digest = hashlib.blake2b(known.encode(), digest_size=12)
        for key in sorted(self.columns):
            column = self.columns[key]
            digest.update(f"{key}:{column.dtype}:{column.shape};".encode())
            for rows in _chunks(column):
                digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ArraySource):
            return NotImplemented
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"{self.name}({len(self)} samples of shape {self.sample_shape}, fields "
            f"{', '.join(self.fields)}, num_classes={self.num_classes})"
        )


def _chunks(column: np.ndarray) -> Iterator[np.ndarray]:
    row = max(1, column.nbytes // max(1, len(column)))
    step = max(1, _CHUNK_BYTES // row)
    for start in range(0, len(column), step):
        yield column[start : start + step]


def _range(column: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value; NaN where a value is not finite."""
    low, high = math.inf, -math.inf
    for rows in _chunks(column):
        a, b = float(rows.min()), float(rows.max())
        if not math.isfinite(a) or not math.isfinite(b):
            return math.nan, math.nan
        low, high = min(low, a), max(high, b)
    return low, high


def _column(name: str, value: Any, length: int | None) -> np.ndarray:
    column = np.asarray(value)
    if column.dtype == object or column.dtype.kind in "USmM":
        raise ValueError(
            f"{name} must be an array of numbers, got dtype {column.dtype}; turn it "
            "into numbers first (texts into embeddings, classes into integer labels)"
        )
    if column.ndim == 0 or column.size == 0:
        raise ValueError(
            f"{name} must hold at least one sample, [N, ...], got shape "
            f"{column.shape}; pass the samples stacked on a first axis"
        )
    if length is not None and len(column) != length:
        raise ValueError(
            f"{name} must have one row per sample of x0 ({length}), got {len(column)}; "
            "pass arrays of equal length"
        )
    if jnp.issubdtype(column.dtype, jnp.floating):
        column = np.ascontiguousarray(column, np.float32)
        if math.isnan(_range(column)[0]):
            bad = sum(int((~np.isfinite(rows)).sum()) for rows in _chunks(column))
            raise ValueError(
                f"{name} must be finite, got {bad} NaN or infinite values of "
                f"{column.size}; drop or repair those samples"
            )
    return column


# Numbers of channels of pictures.
_CHANNELS = (1, 3, 4)


def _check_images(x0: np.ndarray) -> None:
    first, last = x0.shape[-3], x0.shape[-1]
    if last not in _CHANNELS and first in _CHANNELS:
        turned = "0, 2, 3, 1" if x0.ndim == 4 else "0, 1, 3, 4, 2"
        raise ValueError(
            f"x0: images must be [N, H, W, C], got {x0.shape}, which looks like "
            f"channels first; transpose them with x.transpose({turned}), or pass "
            "images=False for latents and other data"
        )
    low, high = _range(x0)
    if low < -1.0 or high > 1.0:
        raise ValueError(
            f"x0: images must lie in [-1, 1], got values from {low:g} to {high:g}; "
            "rescale them (x / 127.5 - 1 for 8 bit), or pass images=False for latents "
            "and other data without bounds"
        )
    if low >= 0.0 and high > 0.0 and last in _CHANNELS:
        warnings.warn(
            f"x0: images lie in [{low:g}, {high:g}], and [-1, 1] is expected: values "
            "in [0, 1] (as of ToTensor) are the brighter half alone; rescale them with "
            "2 * x - 1 if black is 0",
            stacklevel=3,
        )


def _check_labels(cond: np.ndarray, num_classes: int | None) -> tuple[np.ndarray, int]:
    if cond.ndim != 1:
        raise ValueError(
            f"cond: integer labels must be [N], got shape {cond.shape}; squeeze them, "
            "or pass embeddings as floats [N, d]"
        )
    low, high = int(cond.min()), int(cond.max())
    classes = high + 1 if num_classes is None else num_classes
    if high >= np.iinfo(np.int32).max:
        raise ValueError(
            f"cond: labels count from 0, got {low} to {high}, which look like numbers "
            "of files or hashes; renumber them, np.unique(cond, return_inverse=True)"
        )
    if low < 0 or high >= classes:
        raise ValueError(
            f"cond: labels must lie in 0 .. {classes - 1}, got {low} to {high}; "
            "renumber them from 0 or raise num_classes"
        )
    return cond.astype(np.int32), classes


def condition(
    cond: Any, num_classes: int | None, length: int | None = None
) -> tuple[dict[str, np.ndarray], int | None]:
    """The checked column ``cond`` by name, or nothing, and the number of classes."""
    if cond is None:
        if num_classes is not None:
            raise ValueError(
                f"num_classes={num_classes} needs labels as cond, got None"
            )
        return {}, None
    column = _column("cond", cond, length)
    if column.dtype.kind in "iu":
        column, num_classes = _check_labels(column, num_classes)
    elif column.dtype.kind != "f":
        raise ValueError(
            f"cond must be integer labels or float embeddings, got {column.dtype}"
        )
    elif column.ndim == 1:
        raise ValueError(
            "cond: floats [N] are neither labels nor embeddings; pass labels as "
            "integers, cond.astype('int32'), or embeddings as [N, d]"
        )
    elif num_classes is not None:
        raise ValueError(
            f"num_classes={num_classes} needs integer labels as cond, got dtype "
            f"{column.dtype}; drop num_classes or pass labels"
        )
    return {"cond": column}, num_classes


def arrays(
    x0: Any,
    cond: Any = None,
    *,
    num_classes: int | None = None,
    images: bool | None = None,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    **fields: Any,
) -> ArraySource:
    """A source over arrays in memory (or memory-mapped), checked here.

    Args:
      x0: samples, floating: images ``[N, H, W, C]`` or videos ``[N, F, H, W, C]`` in
        [-1, 1], or vectors ``[N, d]``. Stored as float32.
      cond: integer labels ``[N]``, embeddings ``[N, ...]``, or None.
      num_classes: number of labels; default the largest label plus one.
      images: whether the rank and range of images are required; default: required
        unless ``x0`` is ``[N, d]``. False for latents, tokens, anything unbounded.
      name: how reports call it.
      class_names: of the labels from 0, by which students are asked for them.
      **fields: further arrays ``[N, ...]`` by field name (``eps``, ``y``, ``weight``).

    Returns:
      The source, with fields ``x0``, ``cond`` if given, and the further ones.

    Raises:
      ValueError: on empty, non-finite or non-numeric arrays, unequal lengths, images of
        the wrong rank or outside [-1, 1], labels out of range.
    """
    samples = _column("x0", x0, None)
    if samples.dtype.kind != "f":
        raise ValueError(
            f"x0 must be floating, got dtype {samples.dtype}; for 8-bit images pass "
            "x.astype('float32') / 127.5 - 1"
        )
    if samples.ndim == 1:
        raise ValueError(
            f"x0 must be [N, d] or images [N, H, W, C], got shape {samples.shape}; "
            "give numbers an axis of length 1"
        )
    checked = samples.ndim > 2 if images is None else images
    if checked:
        if samples.ndim not in (4, 5):
            raise ValueError(
                "x0: images must be [N, H, W, C] or videos [N, F, H, W, C], got shape "
                f"{samples.shape}; add the channel axis, or pass images=False"
            )
        _check_images(samples)
    columns = {"x0": samples}
    given, num_classes = condition(cond, num_classes, len(samples))
    columns |= given
    for key, value in fields.items():
        columns[key] = _column(key, value, len(samples))
    names = None if class_names is None else tuple(map(str, class_names))
    source = ArraySource(columns, num_classes, name, images=checked, class_names=names)
    names_of(source)
    return source


@words.source
def digits() -> ArraySource:
    """The 1797 handwritten digits that ship inside scikit-learn.

    Returns:
      Fields ``x0`` float32 ``[8, 8, 1]`` in [-1, 1] (``pixels / 8 - 1``) and ``cond``
      int32, the digit.

    References:
      Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998 (its test part).
    """
    with needed("data.digits"):
        from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    x0 = np.asarray(pixels, np.float32).reshape(-1, 8, 8, 1) / 8.0 - 1.0
    return arrays(x0, labels, num_classes=10, name="digits")


@words.source
def coloured_digits(copies: int = 8, *, seed: int = 0) -> ArraySource:
    """`digits`, each tinted with random colours on black.

    The colour has hue ``U[0, 1]``, saturation ``U[0.6, 0.9]`` and value 1.

    Args:
      copies: tints of every digit, at least 1.
      seed: of the colours.

    Returns:
      Fields ``x0`` float32 ``[8, 8, 3]`` in [-1, 1] and ``cond`` int32, the digit;
      ``copies`` times the length of `digits`, in its order.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    plain = digits()
    ink = 0.5 + 0.5 * np.tile(plain.columns["x0"], (copies, 1, 1, 1))
    rng = np.random.default_rng(seed)
    hue, saturation = rng.uniform((0.0, 0.6), (1.0, 0.9), (len(ink), 2)).T
    wheel = np.abs((6.0 * hue[:, None] + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0
    colour = 1.0 - saturation[:, None] * (1.0 - np.clip(wheel, 0.0, 1.0))
    x0 = (2.0 * ink * colour[:, None, None, :] - 1.0).astype(np.float32)
    labels = np.tile(plain.columns["cond"], copies)
    return arrays(x0, labels, num_classes=10, name="coloured_digits")
