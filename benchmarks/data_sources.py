"""Processor time of an image, from the source to the batch.

Images of CIFAR's size (32 x 32 x 3), and photographs of 256 x 256 as JPEG that become
64 x 64, go through the pipeline. Processor time counts all threads and does not depend
on what else the machine does; its inverse is the images a second that one core feeds.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks import measure
from benchmarks.measure import Result, Scale
from distilljax import data
from distilljax.data.sources import Source

COUNT, BATCH, CLASSES = 4096, 256, 8
# Microseconds an image. A cycle of 512 small images in 0.1 s takes 5000 a second: one
# core. Photographs come to larger networks, 500 a second and core.
LIMITS = {"arrays": 200.0, "records": 200.0, "png": 200.0, "jpeg": 2000.0}


def _pixels(count: int, size: int) -> np.ndarray:
    """Smooth pictures with noise, uint8 ``[count, size, size, 3]``."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    rows = [
        Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)
        for c in coarse
    ]
    noise = rng.integers(0, 8, (count, size, size, 3))
    return np.clip(np.stack([np.asarray(r) for r in rows]) + noise, 0, 255).astype("u1")


def _folder(root: pathlib.Path, pixels: np.ndarray, suffix: str) -> pathlib.Path:
    for i, picture in enumerate(pixels):
        path = root / str(i % CLASSES) / f"{i:05d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return root


def sources(root: pathlib.Path, count: int) -> dict[str, Source]:
    """The sources that are measured, written below ``root``."""
    small = _pixels(count, 32)
    x0 = small.astype(np.float32) / np.float32(127.5) - np.float32(1)
    arrays = data.arrays(x0, np.arange(count) % CLASSES)
    data.write_records(arrays, root / "records", shards=4)
    _folder(root / "png", small, "png")
    _folder(root / "jpeg", _pixels(max(8, count // 8), 256), "jpg")
    return {
        "arrays": arrays,
        "records": data.records(root / "records"),
        "png": data.image_folder(root / "png", sample_shape=(32, 32, 3)),
        "jpeg": data.image_folder(root / "jpeg", sample_shape=(64, 64, 3)),
    }


def spent(source: Source, batches: int, batch: int) -> float:
    """Processor seconds of an image over so many batches."""
    it = data.batches(source, batch_size=batch, prefetch=0)
    next(it)
    began = time.process_time()
    for _ in range(batches):
        next(it)
    seconds = time.process_time() - began
    it.close()
    return seconds / (batches * batch)


def run(scale: Scale) -> list[Result]:
    """All results of this file."""
    count, batch = (64, 16) if scale.tiny else (COUNT, BATCH)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, source in sources(pathlib.Path(folder), count).items():
            batches = scale.steps(2 if name == "jpeg" else 16)
            rows = [1e6 * spent(source, batches, batch) for _ in range(scale.pairs)]
            value, low, high = measure.bounds(rows)
            limit = LIMITS[name]
            results.append(
                {
                    "name": f"{name} [us]",
                    "what": "processor microseconds of an image in a batch",
                    "value": value,
                    "low": low,
                    "high": high,
                    "limit": limit,
                    "goal": limit,
                    "passed": value <= limit,
                    "images_per_second_and_core": 1e6 / value,
                    "rows": rows,
                }
            )
    return results


if __name__ == "__main__":
    sys.exit(measure.main(run, "data_sources", __doc__))
