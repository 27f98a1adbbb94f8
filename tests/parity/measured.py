"""How far our numbers are from a file's, by output."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.parity import cases, vectors


class Measured(NamedTuple):
    """What an output of a file gave.

    Attributes:
      k: constant between the official gradient and ours; None for laws and curricula.
      residual: what it leaves of the gradient; for a law the largest difference of the
        distribution functions, for a curriculum the largest relative error.
    """

    k: float | None
    residual: float


def gradients(vector: vectors.Vector) -> dict[str, Measured]:
    """Of a file of gradients."""
    out = {}
    for output, run in cases.runs(vector).items():
        _, found = vectors.gradients(vector, run)
        pair = vectors.flat(vector, output, found)
        out[output] = Measured(*vectors.compare(*pair))
    return out


def laws(vector: vectors.Vector) -> dict[str, Measured]:
    """Of a file of quantiles."""
    out = {}
    for output, sample in cases.laws(vector).items():
        drawn = np.sort(np.asarray(sample))
        quantiles = vector.arrays[f"out.{output}"]
        levels = vector.arrays["out.levels"]
        # The levels of a value that has mass of its own are those on both of its sides.
        below = np.searchsorted(drawn, quantiles, "left") / len(drawn)
        above = np.searchsorted(drawn, quantiles, "right") / len(drawn)
        gap = np.maximum(below - levels, levels - above).max()
        out[output] = Measured(None, float(gap))
    return out


def tables(vector: vectors.Vector) -> dict[str, Measured]:
    """Of a file of a curriculum."""
    out = {}
    for output, values in cases.tables(vector).items():
        official = vector.arrays[f"out.{output}"]
        assert np.shape(values) == official.shape
        scale = np.maximum(np.abs(official), np.finfo(float).tiny)
        far = np.abs(np.asarray(values) - official) / scale
        out[output] = Measured(None, float(np.max(far)))
    return out


KINDS = {"gradient": gradients, "law": laws, "table": tables}


def measured(vector: vectors.Vector) -> dict[str, Measured]:
    """Of a file of any kind."""
    return KINDS[vector.kind](vector)
