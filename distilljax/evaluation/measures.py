"""The statistics that `evaluate` knows by name, and what each of them needs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from distilljax.evaluation import statistics
from distilljax.evaluation.features.extractor import Extracted
from distilljax.evaluation.inputs import check_features
from distilljax.evaluation.memorisation import Memorisation, memorisation_check
from distilljax.evaluation.statistics import Moments
from distilljax.runtime.errors import unknown

Array = NDArray[np.float32]
Found = tuple[float, float]

# Neighbours that set the radii.
_PRECISION_K = 3
_DENSITY_K = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What the measures read.

    Attributes:
      samples: features of the samples and, if the extractor has classes, logits.
      moments: of the reference's features.
      labels: classes that the samples should show, or None.
      reference: the reference's features; None if only its moments are known.
      mesh: devices for pairs.
    """

    samples: Extracted
    moments: Moments
    labels: NDArray[np.int32] | None = None
    reference: Array | None = None
    mesh: Mesh | None = None

    @property
    def x(self) -> Array:
        """Features of the samples."""
        return self.samples.features

    @property
    def y(self) -> Array:
        """Features of the reference; `choose` has checked that they are there."""
        assert self.reference is not None
        return self.reference

    @functools.cached_property
    def precision_recall(self) -> statistics.PrecisionRecall:
        return statistics.precision_recall(
            self.y, self.x, k=_PRECISION_K, mesh=self.mesh
        )

    @functools.cached_property
    def density_coverage(self) -> statistics.DensityCoverage:
        return statistics.density_coverage(self.y, self.x, k=_DENSITY_K, mesh=self.mesh)

    @functools.cached_property
    def memorisation(self) -> Memorisation:
        return memorisation_check(self.x, self.y)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A statistic by name.

    Attributes:
      run: ``(measured, settings) -> (value, standard error)``; NaN is an error that is
        not known.
      line: what it says, in a few words.
      needs: of ``reference`` (its features, not its moments alone), ``logits`` and
        ``labels``.
      settings: what else decides the number; goes to `run` and into the protocol.
      least: the fewest samples and reference images.
    """

    run: Callable[[Measured, Mapping[str, Any]], Found]
    line: str
    needs: frozenset[str] = frozenset()
    settings: Callable[[Measured], Mapping[str, Any]] = lambda m: {}
    least: tuple[int, int] = (2, 2)

    def lacks(self, measured: Measured) -> str:
        """What there is too little of, and how to get more; "" if there is enough."""
        counts = [len(measured.x)]
        if "reference" in self.needs:
            counts.append(len(measured.y))
        if all(n >= least for n, least in zip(counts, self.least)):
            return ""
        wanted = [f"{self.least[0]} samples (--samples; distilljax sample --count)"]
        wanted += [f"{self.least[1]} reference images (--reference)"][: len(counts) - 1]
        return (
            f"it takes at least {' and '.join(wanted)}, got "
            f"{' and '.join(map(str, counts))}"
        )


def _share(value: float, count: int) -> Found:
    """A share among `count` and its binomial standard error."""
    return value, math.sqrt(value * (1.0 - value) / count)


def _frechet(m: Measured, settings: Mapping[str, Any]) -> Found:
    x = check_features("samples", m.x)
    value = statistics.frechet_distance(x, m.moments)
    groups = min(10, len(m.x) // 2)
    error = statistics.frechet_error(m.x, m.moments, groups) if groups > 1 else math.nan
    return value, error


def _kid(m: Measured, settings: Mapping[str, Any]) -> Found:
    found = statistics.kid(m.x, m.y, mesh=m.mesh, **settings)
    return found.value, found.error


def _kid_settings(m: Measured) -> Mapping[str, Any]:
    # Subsets of whole sets would all be one, and its error 0.
    size = max(2, min(1000, len(m.x) // 2, len(m.y) // 2))
    return {"subsets": 100, "subset_size": size, "degree": 3, "seed": 2020}


def _mmd(m: Measured, settings: Mapping[str, Any]) -> Found:
    try:
        width = statistics.median_bandwidth(m.y)
    except ValueError:
        raise ValueError(
            "reference must have a positive median distance between rows, which is the "
            "width of the kernel, got 0 (most rows are equal); take features that tell "
            "them apart"
        ) from None
    return statistics.mmd_estimate(m.x, m.y, width, mesh=m.mesh)


def _accuracy(m: Measured, settings: Mapping[str, Any]) -> Found:
    right = np.asarray(m.samples.logits).argmax(1) == m.labels
    return _share(float(right.mean()), len(right))


def _of(**settings: Any) -> Callable[[Measured], Mapping[str, Any]]:
    return lambda m: settings


_PAIRS = frozenset({"reference"})

MEASURES: dict[str, Measure] = {
    "frechet": Measure(_frechet, "lower is better; FID with features inception"),
    "kid": Measure(_kid, "lower is better, unbiased", _PAIRS, _kid_settings),
    "cmmd": Measure(
        lambda m, s: statistics.cmmd(m.x, m.y, mesh=m.mesh, **s),
        "lower is better; CMMD with features of CLIP",
        _PAIRS,
        _of(bandwidth=10.0, scale=1000.0),
    ),
    "mmd": Measure(_mmd, "lower is better, unbiased", _PAIRS, _of(bandwidth="median")),
    "energy_distance": Measure(
        lambda m, s: statistics.energy_distance(m.x, m.y, mesh=m.mesh),
        "lower is better",
        _PAIRS,
    ),
    "sliced_wasserstein": Measure(
        lambda m, s: statistics.sliced_wasserstein(m.x, m.y, **s),
        "lower is better",
        _PAIRS,
        _of(projections=128, order=2.0, seed=0),
    ),
    "precision": Measure(
        lambda m, s: _share(m.precision_recall.precision, len(m.x)),
        "share of good samples",
        _PAIRS,
        _of(k=_PRECISION_K),
        (_PRECISION_K + 1, _PRECISION_K + 1),
    ),
    "recall": Measure(
        lambda m, s: _share(m.precision_recall.recall, len(m.y)),
        "share of the data covered",
        _PAIRS,
        _of(k=_PRECISION_K),
        (_PRECISION_K + 1, _PRECISION_K + 1),
    ),
    "density": Measure(
        lambda m, s: (m.density_coverage.density, math.nan),
        "1 for equal laws",
        _PAIRS,
        _of(k=_DENSITY_K),
        (1, _DENSITY_K + 1),
    ),
    "coverage": Measure(
        lambda m, s: _share(m.density_coverage.coverage, len(m.y)),
        "share of the data covered",
        _PAIRS,
        _of(k=_DENSITY_K),
        (1, _DENSITY_K + 1),
    ),
    "inception_score": Measure(
        lambda m, s: statistics.inception_score(m.samples.logits, **s),
        "higher is better",
        frozenset({"logits"}),
        lambda m: {"splits": min(10, len(m.x))},
        least=(1, 0),
    ),
    "vendi": Measure(
        lambda m, s: (statistics.vendi_score(m.x, **s), math.nan),
        "effective number of different samples",
        settings=_of(q=1.0),
        least=(1, 0),
    ),
    "memorised": Measure(
        lambda m, s: _share(m.memorisation.share, len(m.x)),
        "share of near copies of the reference",
        _PAIRS,
        least=(1, 4),
    ),
    "accuracy": Measure(
        _accuracy,
        "samples that show their label",
        frozenset({"labels", "logits"}),
        least=(1, 0),
    ),
}
DEFAULT = ("frechet", "kid", "precision", "recall", "density", "coverage")
_MISSING = {
    "reference": "the reference's samples: pass them instead of its statistics "
    "(--reference)",
    "logits": "a classifier: use features digits or inception (--features=digits, "
    "--features=inception:PATH)",
    "labels": "labels in the file of samples (--samples: field label, or class "
    "folders of pictures)",
}


def choose(text: str | None, has: frozenset[str]) -> tuple[str, ...]:
    """Names of measures from ``a,b,c``, ``all``, or None for the usual ones.

    Args:
      text: as on the command line. ``all`` and None take what `has` allows.
      has: what there is of ``reference``, ``logits`` and ``labels``.

    Raises:
      ValueError: an unknown measure, or one that needs what is not there.
    """
    if text is None or text == "all":
        names = DEFAULT if text is None else MEASURES
        return tuple(name for name in names if MEASURES[name].needs <= has)
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in MEASURES:
            raise ValueError(unknown("metric", name, MEASURES))
        for need in sorted(MEASURES[name].needs - has):
            raise ValueError(f"metric {name!r} needs {_MISSING[need]}")
    return names
