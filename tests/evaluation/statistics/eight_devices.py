"""Run in its own process on 8 fake devices; prints what `test_pairs` checks."""

import json
import sys

import jax
import numpy as np
from jax.sharding import AxisType

from distilljax.evaluation import statistics
from distilljax.evaluation.features import random_convolutions
from distilljax.evaluation.statistics import pairs
from distilljax.evaluation.statistics.neighbours import _Nearest

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(203, 5)), rng.normal(0.3, 1.2, (150, 5))
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    far = {}
    for name in (
        "mmd", "cmmd", "energy_distance", "precision_recall", "density_coverage",
        "nearest_distance", "nearest_ratio",
    ):  # fmt: skip
        measure = getattr(statistics, name)
        one, eight = measure(x, y), measure(x, y, mesh=mesh)
        far[name] = float(np.abs(np.subtract(one, eight)).max())
    one, eight = (
        statistics.kid(x, y, subsets=10, subset_size=50, mesh=m) for m in (None, mesh)
    )
    far["kid"] = float(np.abs(np.subtract(one, eight)).max())
    one, eight = statistics.Moments.of(x), statistics.Moments.of(x, mesh=mesh)
    far["moments"] = float(np.abs(one.scatter - eight.scatter).max())

    images = rng.uniform(-1, 1, (13, 6, 6, 1)).astype(np.float32)
    extractor = random_convolutions()
    one, eight = extractor(images), extractor(images, mesh=mesh, batch_size=10)
    features = float(np.abs(one - eight).max())

    def flops(mesh):
        with jax.enable_x64(True):
            given = pairs.prepare(_Nearest(1), x[:192], y, None, mesh)
            compiled = pairs.program.lower(*given).compile()
        return compiled.cost_analysis()["flops"]

    found = {"far": far, "features": features, "flops": flops(mesh) / flops(None)}
    json.dump(found, sys.stdout)
