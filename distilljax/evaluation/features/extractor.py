"""What a feature extractor is: images in, feature vectors out, with a fingerprint."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation.statistics.pairs import row_mesh
from distilljax.runtime import terminal


class Extracted(NamedTuple):
    """What an extractor says of images.

    Attributes:
      features: ``[n, D]`` float32.
      logits: unnormalised log-probabilities of classes ``[n, C]``, or None for an
        extractor that knows no classes.
    """

    features: Any
    logits: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A callable ``images [n, ...] -> features [n, D]``.

    Attributes:
      name: what it is, as the command line spells it, without paths.
      fingerprint: digest of everything that decides its output; equal digests mean
        comparable numbers.
      apply: ``(params, images) -> Extracted`` for images float32 in [-1, 1]. In jax
        if `traced`, else on numpy arrays.
      params: arrays for `apply`.
      traced: whether `apply` is jitted and split over devices.
      batch_size: images at a time, unless a call says otherwise.
    """

    name: str
    fingerprint: str
    apply: Callable[[Any, Any], Extracted]
    params: Any = None
    traced: bool = True
    batch_size: int = 256

    def __call__(self, images: ArrayLike, **options: Any) -> NDArray[np.float32]:
        """Features ``[n, D]`` of images ``[n, ...]``; options as in `batches`."""
        return self.extract(images, **options).features

    def extract(self, images: ArrayLike, **options: Any) -> Extracted:
        """Features and logits of all images; options as in `batches`."""
        parts = list(self.batches(images, **options))
        logits = None
        if parts[0].logits is not None:
            logits = np.concatenate([part.logits for part in parts])
        return Extracted(np.concatenate([part.features for part in parts]), logits)

    def batches(
        self,
        images: ArrayLike,
        *,
        batch_size: int | None = None,
        mesh: Mesh | None = None,
        progress: bool = False,
        prepare: Callable[[NDArray], NDArray] | None = None,
    ) -> Iterator[Extracted]:
        """Features batch by batch, so that only images and one batch are in memory.

        Args:
          images: ``[n, ...]`` in [-1, 1], n at least 1; may be memory-mapped.
          batch_size: images a program call.
          mesh: devices of this process that share each batch; None is the default
            device.
          progress: whether to show a bar.
          prepare: turns rows as they are stored into float32 in [-1, 1].

        Raises:
          ValueError: no images, or images that the extractor cannot read.
        """
        array = np.asanyarray(images)
        if array.ndim < 2 or not len(array):
            raise ValueError(
                f"images must be [n, ...] with n at least 1, got shape {array.shape}."
            )
        size = min(batch_size or self.batch_size, len(array))
        run = self.apply
        if self.traced:
            line = None if mesh is None else row_mesh(mesh)
            size = size if line is None else -(-size // line.size) * line.size
            run = functools.partial(_run, _jitted(self.apply), line)
        starts: Any = range(0, len(array), size)
        if progress:
            options = {"desc": self.name, "unit": "batch", "file": sys.stderr}
            starts = terminal.bar(starts, **options)
        for start in starts:
            rows = array[start : start + size]
            rows = np.asarray(rows if prepare is None else prepare(rows), np.float32)
            count = len(rows)
            if self.traced and count < size:
                rows = np.concatenate([rows, np.repeat(rows[-1:], size - count, 0)])
            found = run(self.params, rows)
            yield Extracted(*(v if v is None else np.asarray(v)[:count] for v in found))


@functools.lru_cache(maxsize=16)
def _jitted(apply: Callable[[Any, Any], Extracted]) -> Callable[[Any, Any], Extracted]:
    return jax.jit(apply)


def _run(
    program: Callable[[Any, Any], Extracted],
    line: Mesh | None,
    params: Any,
    rows: NDArray[np.float32],
) -> Extracted:
    if line is None:
        return program(params, rows)
    whole = NamedSharding(line, PartitionSpec())
    split = NamedSharding(line, PartitionSpec("rows"))
    return program(jax.device_put(params, whole), jax.device_put(rows, split))


def fingerprint(name: str, weights: Mapping[str, ArrayLike]) -> str:
    """Digest of a name and of named arrays, 24 hexadecimal digits."""
    digest = hashlib.blake2b(name.encode(), digest_size=12)
    for key in sorted(weights):
        array = np.ascontiguousarray(weights[key])
        digest.update(f";{key}:{array.dtype}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def need_images(name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless a shape is ``[n, H, W, C]`` with C of 1 or 3."""
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ValueError(
            f"features {name!r} need images [n, H, W, C] with 1 or 3 channels, got "
            f"shape {tuple(shape)}; features 'pixels' take arrays of any shape."
        )


def _flatten(params: None, x: jax.Array) -> Extracted:
    return Extracted(x.reshape(len(x), -1))


def pixels() -> FeatureExtractor:
    """The values themselves, ``D = H W C``; for arrays ``[n, ...]`` of any shape."""
    return FeatureExtractor("pixels", fingerprint("pixels", {}), _flatten)


_CHANNELS = (32, 64, 128)


def _kernels(seed: int, channels: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng((seed, channels))
    sizes = (channels, *_CHANNELS)
    return {
        f"kernel{i}": (rng.normal(size=(3, 3, a, b)) * np.sqrt(2.0 / (9 * a))).astype(
            np.float32
        )
        for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:]))
    }


def _convolve(params: Mapping[int, Mapping[str, Any]], x: jax.Array) -> Extracted:
    need_images("random_convolutions", x.shape)
    out = []
    for i, kernel in enumerate(params[x.shape[3]].values()):
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1) if i == 0 else (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        x = jax.nn.relu(x)
        mean = x.mean((1, 2))
        out += [mean, jnp.sqrt(((x - mean[:, None, None]) ** 2).mean((1, 2)) + 1e-12)]
    return Extracted(jnp.concatenate(out, 1))


def random_convolutions(seed: int = 0) -> FeatureExtractor:
    """A convolutional network with fixed random weights, ``D = 448``.

    Three layers of 3x3 convolutions (32, 64 and 128 channels, strides 1, 2, 2) with
    rectifiers; features are the spatial mean and standard deviation of each channel.
    Untrained, so its distances mean less than Inception's, but it needs no weights and
    sees texture and shape that pixels hide.

    Args:
      seed: of the weights.
    """
    params = {channels: _kernels(seed, channels) for channels in (1, 3)}
    name = f"random_convolutions(seed={seed})"
    flat = {f"{c}.{k}": v for c, p in params.items() for k, v in p.items()}
    return FeatureExtractor(name, fingerprint(name, flat), _convolve, params)
