"""Samples and reference statistics in files, whoever made them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from numpy.typing import NDArray

from distilljax.evaluation.inputs import check_labels
from distilljax.evaluation.opened import Opened, open_file
from distilljax.evaluation.statistics import Moments
from distilljax.runtime.errors import unknown
from distilljax.runtime.storage import write_atomic

_KEYS = ("x", "x0", "samples", "images", "arr_0")
_LABEL_KEYS = ("label", "labels", "cond", "arr_1")
_CHUNK = 1024

# Range as the files have it -> what maps it to [-1, 1].
RANGES = {"[-1, 1]": (1.0, 0.0), "[0, 1]": (2.0, -1.0), "[0, 255]": (1 / 127.5, -1.0)}
# What a file of statistics says of itself.
RECORD = (
    "count",
    "features",
    "features_fingerprint",
    "fingerprint",
    "rounding",
    "source",
)
# Samples may overshoot their range by this much of [-1, 1] before it is doubted.
_OVERSHOOT = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Rows of a file and how to read them.

    Attributes:
      rows: as stored, ``[N, ...]``.
      value_range: a key of `RANGES`, or ``none`` for data without bounds.
      rounding: ``uint8`` or ``none``.
      source: the file's name, for readers.
      labels: ``[N]`` int32, or None.
      record: what the file says of itself, as `sample_files.write` writes it; empty
        for files of other programs.
    """

    rows: NDArray
    value_range: str
    rounding: str
    source: str
    labels: NDArray[np.int32] | None = None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def prepare(self, rows: NDArray) -> NDArray[np.float32]:
        """Rows in [-1, 1], clipped, on the 256 levels of 8-bit images if rounded."""
        if self.value_range == "none":
            return np.asarray(rows, np.float32)
        scale, shift = RANGES[self.value_range]
        x = np.clip(np.asarray(rows, np.float64) * scale + shift, -1.0, 1.0)
        if self.rounding == "uint8":
            x = np.rint((x + 1.0) * 127.5) / 127.5 - 1.0
        return x.astype(np.float32)

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """Prepared rows, a thousand at a time."""
        for start in range(0, len(self.rows), _CHUNK):
            yield self.prepare(self.rows[start : start + _CHUNK])

    @functools.cached_property
    def clipped(self) -> float:
        """Share of values outside the range."""
        if self.value_range == "none" or self.rows.dtype == np.uint8:
            return 0.0
        scale, shift = RANGES[self.value_range]
        outside = 0
        for start in range(0, len(self.rows), _CHUNK):
            x = self.rows[start : start + _CHUNK] * scale + shift
            outside += int((np.abs(x) > 1.0 + 1e-6).sum())
        return outside / self.rows.size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the prepared rows."""
        digest = hashlib.blake2b(str(self.rows.shape).encode(), digest_size=12)
        for rows in self.chunks():
            digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()


class Statistics(NamedTuple):
    """Reference statistics from a file.

    Attributes:
      moments: mean and covariance of features.
      protocol: what `save_statistics` recorded; empty for files of other programs.
      source: the file's name.
    """

    moments: Moments
    protocol: dict[str, Any]
    source: str


def detect_range(rows: NDArray) -> str:
    """The range that stored values have, if only one is plausible.

    Args:
      rows: ``[N, ...]``. Two-dimensional arrays are vectors, without a range.

    Returns:
      A key of `RANGES`, or ``none``.

    Raises:
      ValueError: NaN, or values that fit no range or more than one.
    """
    if rows.dtype == np.uint8:
        return "[0, 255]"
    low, high = float(rows.min()), float(rows.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int((~np.isfinite(rows)).sum())
        raise ValueError(f"samples must be finite, got {bad} NaN or infinite values")
    if rows.ndim == 2:
        return "none"
    # A little below 0 may be [0, 1] that overshoots.
    if low <= -0.5 and max(-low, high) <= 1 + _OVERSHOOT:
        return "[-1, 1]"
    if low <= 0.1 and low >= 0 and 0.9 <= high <= 1:
        return "[0, 1]"
    if low >= 0 and 2 < high <= 255 and _whole(rows):
        return "[0, 255]"
    raise ValueError(
        f"values from {low:.4g} to {high:.4g} ({rows.dtype}) fit no range without "
        "doubt; say which one it is with --range (of a reference: --reference-range): "
        "-1,1 or 0,1 or 0,255 for images (values beyond are clipped), none for data "
        "without bounds"
    )


def _whole(rows: NDArray) -> bool:
    return bool((rows[:_CHUNK] == np.rint(rows[:_CHUNK])).all())


def parse_range(text: str | None) -> str | None:
    """``-1,1`` as ``[-1, 1]``; None stays None.

    Raises:
      ValueError: an unknown range.
    """
    known = {key.strip("[]").replace(" ", ""): key for key in RANGES} | {"none": "none"}
    if text is None:
        return None
    if text.strip("[]").replace(" ", "") not in known:
        raise ValueError(unknown("range", text, known))
    return known[text.strip("[]").replace(" ", "")]


def read_samples(
    path: str | os.PathLike,
    *,
    rounding: str = "uint8",
    value_range: str | None = None,
) -> Samples:
    """Samples of a file or of a folder of pictures.

    Args:
      path: ``.npz`` or ``.npy`` with ``x``, ``x0``, ``samples``, ``images`` or
        ``arr_0`` ``[N, H, W, C]``, ``[N, H, W]`` or ``[N, D]``, 8-bit or floating, and
        optionally labels ``[N]`` under ``label``, ``labels``, ``cond`` or ``arr_1``; or
        a folder of pictures of one size, class folders being labels; or one picture. A
        grid that was written beside samples stands for them.
      rounding: ``uint8`` rounds images to the levels of 8 bit, as a saved picture is;
        ``none`` keeps them. Vectors are never rounded.
      value_range: a key of `RANGES` or ``none``; by default what the file says of
        itself, else it is detected.

    Raises:
      ValueError: no such file or key, a wrong shape, NaN, or a doubtful range; says
        what came and what to do.
    """
    return _samples(open_file(epath.Path(path)), rounding, value_range)


def _samples(opened: Opened, rounding: str, value_range: str | None) -> Samples:
    found, record, source = opened
    key = next((name for name in _KEYS if name in found), None)
    if key is None:
        what = "reference statistics" if is_statistics(found) else "no samples"
        raise ValueError(
            f"{source} holds {what} ({', '.join(sorted(found)) or 'nothing'}): write "
            f"samples under one of {', '.join(_KEYS)}"
        )
    said = record.get("value_range")
    if value_range is None and (said in RANGES or said == "none"):
        value_range = said
    made = make_samples(
        found[key],
        next((found[name] for name in _LABEL_KEYS if name in found), None),
        rounding=rounding,
        value_range=value_range,
        source=source,
    )
    return dataclasses.replace(made, record=record)


def make_samples(
    rows: NDArray,
    labels: NDArray | None = None,
    *,
    rounding: str = "uint8",
    value_range: str | None = None,
    source: str = "arrays",
) -> Samples:
    """Checked samples of arrays; see `read_samples`."""
    if rounding not in ("uint8", "none"):
        raise ValueError(unknown("rounding", rounding, ("uint8", "none")))
    if rows.ndim < 2 or rows.size == 0 or rows.dtype.kind not in "uif":
        raise ValueError(
            f"{source}: samples must be numbers [N, H, W, C] or [N, D], got "
            f"{rows.dtype} {rows.shape}"
        )
    if rows.ndim == 3:
        rows = rows[..., None]
    if rows.ndim == 4 and rows.shape[1] in (1, 3) and rows.shape[3] not in (1, 3, 4):
        raise ValueError(
            f"{source}: images must be [N, H, W, C], got {rows.shape}, channels first; "
            "transpose them with x.transpose(0, 2, 3, 1)"
        )
    if rows.dtype == np.uint8 and value_range not in (None, "none", "[0, 255]"):
        raise ValueError(
            f"{source}: 8-bit integers have the range [0, 255], got {value_range}; "
            "leave it out"
        )
    try:
        value_range = value_range or detect_range(rows)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if value_range == "none":
        rounding = "none"
    # Embeddings under a label's name are no labels.
    if labels is not None and not (labels.ndim == 1 and labels.dtype.kind in "iu"):
        labels = None
    if labels is not None:
        labels = check_labels(f"{source}: labels", labels, len(rows))
    return Samples(rows, value_range, rounding, source, labels)


def describe(found: Samples | Statistics) -> str:
    """One line on what was read, and how its values were understood."""
    if isinstance(found, Statistics):
        width = len(found.moments.mean)
        made = found.protocol.get("features", "an extractor that is not recorded")
        return f"{found.source}: statistics of {width} features by {made}"
    shape = " x ".join(map(str, found.rows.shape[1:]))
    line = f"{found.source}: {len(found)} rows of {shape}, range {found.value_range}"
    if found.rounding == "uint8":
        line += ", rounded to 8 bit"
    if found.clipped:
        line += f", {100 * found.clipped:.2g} % of the values clipped"
    return line


def is_statistics(found: dict[str, NDArray]) -> bool:
    """Whether a file's arrays are a mean and a covariance."""
    return {"mean", "cov"} <= set(found) or {"mu", "sigma"} <= set(found)


def read_reference(
    path: str | os.PathLike, *, rounding: str = "uint8", value_range: str | None = None
) -> Samples | Statistics:
    """A reference: samples, or statistics by `save_statistics` or other programs.

    Statistics of other programs (``mu``, ``sigma``) say neither their extractor nor
    their count; both stay unknown in the protocol.

    Raises:
      ValueError: as `read_samples`, or statistics that do not fit each other.
    """
    opened, path = open_file(epath.Path(path)), epath.Path(path)
    found = opened.arrays
    if not is_statistics(found):
        return _samples(opened, rounding, value_range)
    mean = found["mean"] if "mean" in found else found["mu"]
    cov = found["cov"] if "cov" in found else found["sigma"]
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path}: statistics must be a mean [D] and a covariance [D, D], got "
            f"{mean.shape} and {cov.shape}"
        )
    moments = _moments(str(path), mean, cov, found.get("count"))
    protocol = json.loads(str(found["protocol"])) if "protocol" in found else {}
    missing = [name for name in RECORD if name not in protocol]
    if protocol and missing:
        raise ValueError(
            f"{path}: the protocol of the statistics must say {', '.join(RECORD)}; "
            f"missing: {', '.join(missing)}; write the file with --save-statistics"
        )
    return Statistics(moments, protocol, str(path))


def _moments(source: str, mean: NDArray, cov: NDArray, count: Any) -> Moments:
    """Moments of a file's statistics, which may be any arrays.

    Raises:
      ValueError: naming the file, unless they are a mean and covariance of rows.
    """
    for name, array in (("mean", mean), ("covariance", cov)):
        finite = array.dtype.kind in "iuf" and np.isfinite(array)
        if not np.all(finite):
            bad = array.size - int(np.sum(finite))
            raise ValueError(
                f"{source}: the {name} must be finite numbers, got {bad} values of "
                f"{array.size} that are not ({array.dtype}); compute the statistics "
                "again"
            )
    mean, cov = mean.astype(np.float64), cov.astype(np.float64)
    # Some programs accumulate and write in float32.
    slack = 1e-4 * max(float(np.abs(np.diagonal(cov)).max(initial=0.0)), 1e-30)
    apart = float(np.abs(cov - cov.T).max(initial=0.0))
    if apart > slack:
        raise ValueError(
            f"{source}: a covariance must be symmetric, got values that differ by "
            f"{apart:.3g} from those across the diagonal; compute it with np.cov(x, "
            "rowvar=False)"
        )
    cov = 0.5 * (cov + cov.T)
    low = float(np.linalg.eigvalsh(cov).min(initial=0.0))
    if low < -slack:
        raise ValueError(
            f"{source}: a covariance has no negative eigenvalues, got {low:.3g}; "
            "compute it with np.cov(x, rowvar=False)"
        )
    # A covariance without its count is kept as that of 2 rows.
    rows = np.asarray(2 if count is None else count)
    if rows.shape != () or rows.dtype.kind not in "iuf" or not rows >= 2 or rows % 1:
        raise ValueError(
            f"{source}: count must be the number of rows, an integer of at least 2, "
            f"got {rows}"
        )
    return Moments(int(rows), mean, cov * (int(rows) - 1))


def save_statistics(
    path: str | os.PathLike, moments: Moments, protocol: dict[str, Any]
) -> epath.Path:
    """Writes ``mean``, ``cov``, ``count`` and ``protocol``; whole or not at all.

    Args:
      path: file, ending in ``.npz``.
      moments: of the reference's features.
      protocol: plain values that say what they are of, with every key of `RECORD`.
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        mean=moments.mean,
        cov=moments.covariance,
        count=np.int64(moments.count),
        protocol=np.str_(json.dumps(protocol, allow_nan=False)),
    )
    return write_atomic(path, buffer.getvalue())
