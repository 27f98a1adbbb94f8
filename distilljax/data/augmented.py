"""EDM's augmentation that does not leak: turned, scaled and shifted images, told apart.

Every image is changed at random, and what was changed is told to the network as numbers
beside its condition. With zeros there, generation gives unchanged images (Karras et al.
2022, appendix F.2; the warp is that of Karras et al. 2020).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from distilljax.data.sources import Sample, Source
from distilljax.runtime import words
from distilljax.runtime.errors import unknown

# Numbers that a change tells the network.
COUNTS = {"mirror": 1, "flip": 1, "scale": 1, "rotate": 2, "stretch": 2, "shift": 2}
# Standard deviations: of scale and stretch in powers of two, of shifts in image widths.
SCALE_STD = STRETCH_STD = 0.2
SHIFT_STD = 0.125
# Low-pass filter of the wavelet sym6 (Daubechies 1992), before and behind the warp.
SYM6 = np.asarray(
    [
        0.015404109327027373,
        0.0034907120842174702,
        -0.11799011114819057,
        -0.048311742585633,
        0.4910559419267466,
        0.787641141030194,
        0.3379294217276218,
        -0.07263752278646252,
        -0.021060292512300564,
        0.04472490177066578,
        0.0017677118642428036,
        -0.007800708325034148,
    ]
)
# Pixels that are kept around the result until it is filtered.
_EDGE = len(SYM6) // 4
# Images warped together.
_CHUNK = 32


@words.call
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which changes an image undergoes, in this order, and how often.

    ``mirror`` (left to right) stands for a fair coin on every image; the others act
    with the given probability each: ``flip`` (upside down) is then a fair coin,
    ``scale`` a factor ``2^(0.2 w)`` with ``w ~ N(0, 1)``, ``rotate`` a uniform angle,
    ``stretch`` a factor ``2^(0.2 w)`` along one axis and its inverse along the other,
    about an axis that is turned by a uniform angle half of the time, and ``shift`` a
    move by ``N(0, 1)`` eighths of the image along both axes.

    Attributes:
      probability: of each change but ``mirror``; 0.12 on CIFAR-10, 0.15 on FFHQ.
      kinds: the changes. py-meanflow leaves ``flip`` and ``rotate`` out.
    """

    probability: float = 0.12
    kinds: tuple[str, ...] = tuple(COUNTS)

    def __post_init__(self):
        if not 0.0 < self.probability <= 1.0:
            raise ValueError(
                "probability of an augmentation must lie in (0, 1], got "
                f"{self.probability}; for none leave augment out"
            )
        for kind in self.kinds:
            if kind not in COUNTS:
                raise ValueError(unknown("augmentation", kind, COUNTS))
        object.__setattr__(self, "kinds", tuple(k for k in COUNTS if k in self.kinds))

    @property
    def features(self) -> int:
        """Numbers that the network is told: its ``augment_features``."""
        return sum(COUNTS[kind] for kind in self.kinds)

    def draw(self, seed: int, positions: np.ndarray) -> dict[str, np.ndarray]:
        """How the images at places of a stream are changed.

        Args:
          seed: of the stream.
          positions: places ``[n]``; each has random numbers of its own.

        Returns:
          Kind -> ``[n, c]``: ``mirror`` and ``flip`` 0 or 1, ``scale`` its ``w``,
          ``rotate`` the angle, ``stretch`` its ``w`` and the angle of its axis,
          ``shift`` its two numbers. Zeros change nothing.
        """
        streams = [np.random.default_rng((seed, int(p), 1)) for p in positions]
        even = np.stack([rng.random(11) for rng in streams])
        normal = np.stack([rng.standard_normal(4) for rng in streams])
        angles = (2.0 * even[:, 8:10] - 1.0) * np.pi
        axis = np.where(even[:, 10] < 0.5, angles[:, 1], 0.0)
        coins = even[:, 6:8] < 0.5
        values = {
            "mirror": coins[:, :1],
            "flip": coins[:, 1:],
            "scale": normal[:, :1],
            "rotate": angles[:, :1],
            "stretch": np.stack([normal[:, 1], axis], 1),
            "shift": normal[:, 2:],
        }
        out = {}
        for column, kind in enumerate(COUNTS):
            acts = even[:, column] < (1.0 if kind == "mirror" else self.probability)
            if kind in self.kinds:
                out[kind] = np.where(acts[:, None], values[kind], 0.0)
        return out

    def numbers(self, drawn: dict[str, np.ndarray]) -> np.ndarray:
        """What the network is told, ``[n, features]``: zeros for an unchanged image.

        A rotation is told as ``cos - 1`` and ``sin`` of its angle, a stretch as ``w``
        along its axis; the rest as it was drawn.
        """
        told = dict(drawn)
        if "rotate" in told:
            angle = told["rotate"]
            told["rotate"] = np.concatenate([np.cos(angle) - 1.0, np.sin(angle)], 1)
        if "stretch" in told:
            w, axis = told["stretch"].T
            told["stretch"] = np.stack([w * np.cos(axis), w * np.sin(axis)], 1)
        columns = [told[kind] for kind in self.kinds]
        return np.concatenate(columns, 1).astype(np.float32)

    def apply(self, images: np.ndarray, drawn: dict[str, np.ndarray]) -> np.ndarray:
        """Changed images.

        Args:
          images: ``[n, H, W, C]``; left as they are.
          drawn: see `draw`.
        """
        out = np.array(images)
        for kind, axis in (("mirror", 2), ("flip", 1)):
            if kind in drawn:
                turned = drawn[kind][:, 0] > 0
                out[turned] = np.flip(out[turned], axis)
        matrix, offset = _affine(drawn, len(out), out.shape[1:3])
        still = (matrix == np.eye(2)).all((1, 2)) & (offset == 0.0).all(1)
        moved = np.flatnonzero(~still)
        for start in range(0, len(moved), _CHUNK):
            rows = moved[start : start + _CHUNK]
            out[rows] = warped(out[rows], matrix[rows], offset[rows])
        return out


def _turned(angle: np.ndarray) -> np.ndarray:
    """Rotations ``[n, 2, 2]`` of ``(x, y)``."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


def _affine(
    drawn: dict[str, np.ndarray], count: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """``(matrix [n, 2, 2], offset [n, 2])`` from a place of the result to the image's.

    Places are ``(x, y)`` in pixels from the centre, y downwards.
    """
    matrix = np.broadcast_to(np.eye(2), (count, 2, 2))
    if "scale" in drawn:
        matrix = matrix * np.exp2(-SCALE_STD * drawn["scale"])[..., None]
    if "rotate" in drawn:
        matrix = matrix @ _turned(drawn["rotate"][:, 0])
    if "stretch" in drawn:
        w, axis = drawn["stretch"].T
        factors = np.exp2(np.stack([-w, w], 1) * STRETCH_STD)
        along = np.where((w == 0.0)[:, None, None], np.eye(2), _turned(axis))
        matrix = matrix @ along.mT @ (factors[..., None] * along)
    shift = drawn.get("shift", np.zeros((count, 2)))
    pixels = shift * SHIFT_STD * np.asarray(size[::-1])
    return matrix, -(matrix @ pixels[..., None])[..., 0]


@functools.lru_cache(maxsize=8)
def _filters(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that double a padded axis of an image, and halve a cut-out one again."""
    margin = size - 1
    padded, inner = size + 2 * margin, 2 * (size + 2 * _EDGE)

    def taps(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        index = rows[:, None] - columns[None] + 5
        found = (index >= 0) & (index < len(SYM6))
        return np.where(found, SYM6[np.clip(index, 0, len(SYM6) - 1)], 0.0)

    up = taps(np.arange(2 * padded), 2 * np.arange(padded))
    place = np.abs(np.arange(-margin, size + margin))
    reflected = np.minimum(place, 2 * margin - place)
    folded = up @ np.eye(size)[reflected]
    down = taps(np.arange(inner), 2 * (np.arange(size) + _EDGE)).T
    return folded.astype(np.float32), down.astype(np.float32)


def warped(images: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Images under affine maps, reflected at their edges and free of aliases.

    The image is reflected once on each side, doubled in resolution by the wavelet sym6,
    read bilinearly and halved again; outside of the reflection it is 0.

    Args:
      images: ``[n, H, W, C]``.
      matrix: ``[n, 2, 2]``, and
      offset: ``[n, 2]``: the place of the image that a place of the result shows, see
        `_affine`.
    """
    n, height, width, channels = images.shape
    (up_y, down_y), (up_x, down_x) = _filters(height), _filters(width)
    fine = np.einsum("ah,nhwc->nawc", up_y, images, optimize=True)
    fine = np.einsum("bw,nawc->nabc", up_x, fine, optimize=True)
    rows, columns = fine.shape[1:3]
    # Places in fine pixels from the centre; the filter moves them by half a pixel.
    y = np.arange(down_y.shape[1]) + 0.5 - 0.5 * down_y.shape[1]
    x = np.arange(down_x.shape[1]) + 0.5 - 0.5 * down_x.shape[1]
    places = np.stack(np.meshgrid(x, y), -1) + 0.5
    at = np.einsum("nij,abj->nabi", matrix, places) + 2.0 * offset[:, None, None]
    at = at - 0.5 + 0.5 * np.asarray([columns, rows]) - 0.5
    low = np.floor(at)
    share = (at - low).astype(np.float32)
    low = low.astype(np.int64)
    first = (np.arange(n) * rows * columns)[:, None, None]
    flat = fine.reshape(-1, channels)
    read = np.zeros((*at.shape[:3], channels), np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            i, j = low[..., 1] + dy, low[..., 0] + dx
            inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
            weight = np.abs(1 - dx - share[..., 0]) * np.abs(1 - dy - share[..., 1])
            index = np.where(inside, i * columns + j, 0) + first
            read += np.take(flat, index, axis=0) * (weight * inside)[..., None]
    out = np.einsum("ha,nabc->nhbc", down_y, read, optimize=True)
    return np.einsum("wb,nhbc->nhwc", down_x, out, optimize=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Augmented:
    """A source whose samples are changed anew each time that training reads them.

    Read one by one or by ``take`` it is the source itself, so that references and looks
    at the data see it unchanged; the shuffled stream of `pipeline.batches` passes its
    samples through `vary`.

    Attributes:
      source: of images.
      augmentation: the changes.
    """

    source: Source
    augmentation: Augmentation

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]

    def __getattr__(self, name: str) -> Any:
        # take, read_threads, cond_features, name: what the source has, and no more.
        if name.startswith("_") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one ``x0``."""
        return self.source.sample_shape

    @property
    def num_classes(self) -> int | None:
        """See `Source`."""
        return self.source.num_classes

    @property
    def fields(self) -> tuple[str, ...]:
        """See `Source`."""
        return self.source.fields

    @property
    def augment_features(self) -> int:
        """Numbers beside the condition."""
        return self.augmentation.features

    @property
    def fingerprint(self) -> str:
        """See `Source`."""
        return f"{self.augmentation!r} {self.source.fingerprint}"

    def vary(self, rows: Sample, seed: int, positions: np.ndarray) -> Sample:
        """Rows with changed images, and ``cond`` as a dict that tells the changes.

        Args:
          rows: samples ``[n, ...]``.
          seed: of the stream.
          positions: their places in it, ``[n]``.

        Returns:
          The rows; ``cond`` holds ``augment [n, features]`` and, as ``label`` or
          ``embedding``, the condition that was there.
        """
        drawn = self.augmentation.draw(seed, positions)
        cond: dict[str, Any] = {"augment": self.augmentation.numbers(drawn)}
        if "cond" in rows:
            cond["embedding" if self.num_classes is None else "label"] = rows["cond"]
        x0 = self.augmentation.apply(rows["x0"], drawn)
        return {**rows, "x0": x0, "cond": cond}


def augmented(source: Source, augmentation: Augmentation | None) -> Source:
    """A source under EDM's augmentation; None leaves it as it is.

    The network is built with ``augment_features=augmentation.features``. Conditions
    without these numbers (generation, distillation of plain data) count as zeros.

    Raises:
      ValueError: if the samples are no square images.
    """
    if augmentation is None:
        return source
    shape = tuple(source.sample_shape)
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(
            "source must hold square images [H, W, C] to be augmented, got samples of "
            f"shape {shape}; leave augment out"
        )
    return Augmented(source, augmentation)
