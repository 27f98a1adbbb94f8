"""ArrayRecord folders: many samples on disk or in a bucket, with random access.

A folder holds shards ``part-00000-of-00008.array_record`` and ``data.json``. A record
is one sample: the values of its fields one after another, C order, little endian, no
padding, in the order of ``data.json``'s ``fields``, which says dtype and shape of each.
Images may be stored as uint8 and are read as ``value / 127.5 - 1``.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from distilljax.data.augmented import Augmentation, augmented
from distilljax.data.images import mirrored
from distilljax.data.pipeline import take
from distilljax.data.sources import Sample, Source
from distilljax.runtime import storage, words
from distilljax.runtime.errors import unknown
from distilljax.runtime.extras import needed
from distilljax.runtime.labels import names_of

FORMAT = "distilljax records 1"
DESCRIPTION = "data.json"
_DTYPES = ("uint8", "int32", "float16", "float32")
# Bytes of samples that are held while a shard is written.
_CHUNK_BYTES = 32 * 2**20


@dataclasses.dataclass(frozen=True)
class Shard:
    """Records of one file, as `grain`'s data source wants them described."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        """Records in the file."""
        return self.skip + self.take


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSource:
    """Samples of an ArrayRecord folder; make one with `records`.

    Attributes:
      shards: its files.
      layout: field -> dtype and shape, in the order of a record.
      num_classes: see `Source`.
      fingerprint: see `Source`; the digest of the contents that the writer recorded.
      name: how reports and errors call it.
      class_names: see `Source`.
    """

    shards: tuple[Shard, ...]
    layout: Mapping[str, tuple[str, tuple[int, ...]]]
    num_classes: int | None
    fingerprint: str
    name: str
    class_names: tuple[str, ...] | None = None

    @functools.cached_property
    def _reader(self) -> Any:
        with needed("reading records"):
            import grain

        shards: Any = self.shards
        return grain.sources.ArrayRecordDataSource(shards)

    @functools.cached_property
    def _record(self) -> np.dtype:
        return packed(self.layout)

    def __len__(self) -> int:
        return sum(shard.take for shard in self.shards)

    def __getitem__(self, index: int) -> Sample:
        return {name: rows[0] for name, rows in self.take(np.array([index])).items()}

    def take(self, indices: np.ndarray) -> Sample:
        """Samples at ``indices [n]`` as a dict of fresh arrays ``[n, ...]``."""
        found = self._reader.__getitems__(indices.tolist())
        rows = np.frombuffer(b"".join(found), self._record)
        if len(rows) != len(indices):
            raise ValueError(
                f"records of {self.name} must have {self._record.itemsize} bytes, as "
                f"{DESCRIPTION} says; write the folder again"
            )
        return {name: _decoded(rows[name]) for name in self.layout}

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one ``x0``."""
        return self.layout["x0"][1]

    @property
    def cond_features(self) -> int | None:
        """Features of ``cond`` where it is embeddings ``[N, d]``."""
        kind, shape = self.layout.get("cond", ("", ()))
        return shape[0] if kind.startswith("float") and len(shape) == 1 else None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(self.layout)


def packed(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> np.dtype:
    """The dtype of a record."""
    return np.dtype(
        [
            (n, np.dtype(kind).newbyteorder("<"), shape)
            for n, (kind, shape) in layout.items()
        ]
    )


def _decoded(column: np.ndarray) -> np.ndarray:
    if column.dtype == np.uint8:
        return column.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    return column.astype(np.int32 if column.dtype.kind == "i" else np.float32)


@words.source
def records(
    path: str | os.PathLike,
    *,
    sample_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    flip: bool = False,
    augment: Augmentation | None = None,
) -> Source:
    """The samples that `write_records` left in a folder.

    Args:
      path: the folder, or a pattern of some of its shards
        (``data/cifar10/part-0000[0-3]*``); in a bucket too.
      sample_shape: what it must hold; a card says it, so that programs can be built
        without the data.
      num_classes: number of labels, at least the folder's; default the folder's.
      flip: adds the mirror images, see `mirrored`.
      augment: EDM's augmentation, see `augmented`.

    Raises:
      ValueError: if there is no such folder, a shard is missing or the samples have
        another shape.
    """
    path = epath.Path(path)
    pattern = "*"
    if not (path / DESCRIPTION).is_file() and any(c in path.name for c in "*?["):
        path, pattern = path.parent, path.name
    about = description(path)
    listed = [s for s in about["shards"] if fnmatch.fnmatch(s["file"], pattern)]
    if not listed:
        names = [s["file"] for s in about["shards"]]
        raise ValueError(f"{path}: " + unknown("shard", pattern, names))
    there = {file.name for file in path.iterdir()}
    missing = [s["file"] for s in listed if s["file"] not in there]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(listed)} shards, the first "
            f"{missing[0]}; copy or write the folder again"
        )
    layout = {n: (f["dtype"], tuple(f["shape"])) for n, f in about["fields"].items()}
    if sample_shape is not None and layout["x0"][1] != tuple(sample_shape):
        raise ValueError(
            f"{path}: samples must have shape {tuple(sample_shape)}, got "
            f"{layout['x0'][1]}"
        )
    had = about["num_classes"]
    if num_classes is not None and (had is None or had > num_classes):
        raise ValueError(
            f"num_classes={num_classes}: {path} has "
            + ("no labels" if had is None else f"{had} classes")
        )
    digest = hashlib.blake2b(about["fingerprint"].encode(), digest_size=12)
    if pattern != "*":
        digest.update(repr(sorted(s["file"] for s in listed)).encode())
    names = about.get("class_names") if num_classes in (None, had) else None
    source = RecordSource(
        tuple(Shard(os.fspath(path / s["file"]), s["count"]) for s in listed),
        layout,
        had if num_classes is None else num_classes,
        digest.hexdigest(),
        f"records {path}",
        None if names is None else tuple(names),
    )
    return augmented(mirrored(source) if flip else source, augment)


def description(folder: epath.Path) -> dict[str, Any]:
    """What ``data.json`` of a folder says.

    Raises:
      ValueError: if there is none, or one of another format.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ValueError(
            f"no records in {folder}: there is no {DESCRIPTION} in it; write some with "
            "distilljax.data.write_records(source, folder) or distilljax convert"
        )
    about = json.loads(path.read_text())
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} must be {FORMAT!r}, got {about.get('format')!r}")
    return about


def shard_name(number: int, count: int) -> str:
    """File name of a shard."""
    return f"part-{number:05d}-of-{count:05d}.array_record"


def write_shard(path: epath.Path, rows: Iterator[np.ndarray]) -> tuple[int, str]:
    """Writes packed rows to one shard, whole or not at all.

    Args:
      path: the file.
      rows: arrays of records, see `packed`.

    Returns:
      Number of records and digest of their content.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    count, digest = 0, hashlib.blake2b(digest_size=12)
    with storage.whole(path) as local:
        # Groups of one record are what random access wants.
        writer = ArrayRecordWriter(local, "group_size:1")
        try:
            for part in rows:
                digest.update(part.tobytes())
                for row in part:
                    writer.write(row.tobytes())
                count += len(part)
        finally:
            writer.close()
    return count, digest.hexdigest()


def describe(
    folder: epath.Path,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    num_classes: int | None,
    shards: list[tuple[str, int, str]],
    **more: Any,
) -> None:
    """Writes ``data.json``, which makes the folder complete.

    Args:
      folder: where the shards lie.
      layout: see `RecordSource`.
      num_classes: see `Source`.
      shards: file name, number of records and digest of each.
      **more: further JSON values.
    """
    fields = {n: {"dtype": kind, "shape": list(s)} for n, (kind, s) in layout.items()}
    known = json.dumps([fields, num_classes, shards], sort_keys=True)
    about = {
        "format": FORMAT,
        "count": sum(count for _, count, _ in shards),
        "fields": fields,
        "num_classes": num_classes,
        "shards": [{"file": name, "count": count} for name, count, _ in shards],
        "fingerprint": hashlib.blake2b(known.encode(), digest_size=12).hexdigest(),
        **more,
    }
    storage.write_atomic(folder / DESCRIPTION, json.dumps(about, indent=1) + "\n")


def write_records(
    source: Source,
    folder: str | os.PathLike,
    *,
    shards: int = 1,
    x0: str | None = None,
) -> epath.Path:
    """Writes a source to an ArrayRecord folder.

    Args:
      source: any source; `arrays` makes one of arrays.
      folder: where to; in a bucket too.
      shards: number of files; some hundred MB each are a good size.
      x0: type of the stored samples: ``uint8`` (images), ``float16`` or ``float32``;
        default uint8 where that loses nothing of the first samples, else float32.

    Returns:
      The folder.

    Raises:
      ValueError: if the folder holds records already, or a sample does not fit.
    """
    folder = epath.Path(folder)
    if (folder / DESCRIPTION).exists():
        raise ValueError(
            f"{folder} holds records already; remove it or choose another folder"
        )
    if "x0" not in source.fields:
        raise ValueError(
            f"source must have samples x0 to be written, it has {source.fields}"
        )
    count = len(source)
    if not 1 <= shards <= count:
        raise ValueError(
            f"shards must lie between 1 and the {count} samples, got {shards}"
        )
    probe = take(source, np.arange(min(count, 64)))
    kind = x0 or ("uint8" if _eight_bit(probe["x0"]) else "float32")
    if kind not in _DTYPES:
        raise ValueError(unknown("type of x0", kind, _DTYPES))
    layout = {
        name: (kind if name == "x0" else value.dtype.name, value.shape[1:])
        for name, value in probe.items()
    }
    size = packed(layout).itemsize
    step = max(1, _CHUNK_BYTES // size)
    edges = [count * i // shards for i in range(shards + 1)]

    def rows(first: int, last: int) -> Iterator[np.ndarray]:
        for start in range(first, last, step):
            indices = np.arange(start, min(start + step, last))
            yield pack(take(source, indices), layout, start)

    written = []
    for i, (first, last) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        name = shard_name(i, shards)
        written.append((name, *write_shard(folder / name, rows(first, last))))
    more = {} if (names := names_of(source)) is None else {"class_names": names}
    describe(folder, layout, source.num_classes, written, **more)
    return folder


def _eight_bit(x: np.ndarray) -> bool:
    if x.ndim != 4 or x.shape[-1] not in (1, 3, 4) or np.abs(x).max() > 1.0:
        return False
    return bool(np.array_equal(_decoded(_encoded(x)), x))


def _encoded(x: np.ndarray) -> np.ndarray:
    return np.rint((x + np.float32(1.0)) * np.float32(127.5)).astype(np.uint8)


def pack(
    sample: Sample, layout: Mapping[str, tuple[str, tuple[int, ...]]], first: int = 0
) -> np.ndarray:
    """Records of samples.

    Args:
      sample: field -> ``[n, ...]``.
      layout: see `RecordSource`.
      first: index of the first sample, for errors.

    Raises:
      ValueError: on images outside [-1, 1] that are stored as uint8.
    """
    out = np.empty(len(sample["x0"]), packed(layout))
    for name, (kind, _) in layout.items():
        value = sample[name]
        if kind == "uint8":
            beyond = np.abs(value).reshape(len(value), -1).max(axis=1) > 1.0
            if beyond.any():
                raise ValueError(
                    f"{name} stored as uint8 must lie in [-1, 1], sample "
                    f"{first + int(beyond.argmax())} does not; pass x0='float32'"
                )
            value = _encoded(value)
        out[name] = value
    return out


@words.source
def pairs(
    path: str | os.PathLike,
    *,
    sample_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Source:
    """Pairs or trajectories of a teacher that ``distilljax pairs`` wrote.

    Args:
      path: see `records`.
      sample_shape: see `records`.
      num_classes: see `records`.

    Returns:
      The source. Fields of pairs: noise ``eps`` and the teacher's sample ``x0``; of
      trajectories ``states [K, ...]`` at ``times [K]`` and their end ``x0``; labels
      ``cond``. `draws.StoredPairs` and `draws.StoredTrajectory` read them.

    Raises:
      ValueError: where `records` does, or if the folder holds other records.
    """
    source = records(path, sample_shape=sample_shape, num_classes=num_classes)
    if not {"eps", "states"} & {*source.fields}:
        raise ValueError(
            f"{path} holds records with the fields {', '.join(source.fields)} and no "
            "pairs of a teacher; write some with distilljax pairs --run=TEACHER, or "
            "read it with records"
        )
    return source
