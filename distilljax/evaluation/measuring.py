"""Measures samples of any origin against a reference, protocol included."""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from distilljax.evaluation.features.extractor import (
    Extracted,
    FeatureExtractor,
    fingerprint,
)
from distilljax.evaluation.machine import versions
from distilljax.evaluation.measures import MEASURES, Measured, choose
from distilljax.evaluation.protocol import Measurement, Protocol
from distilljax.evaluation.samples import Samples, Statistics, save_statistics
from distilljax.evaluation.statistics import Moments
from distilljax.runtime.terminal import Waiting

# Samples for a feature below which the Frechet distance is called biased.
_ROWS_PER_FEATURE = 10
# Values of a sample beyond which it is measured by features and not by its pixels.
_WIDE = 1000
# Seconds between the lines of a metric that takes long.
_SECONDS = 10.0
_OTHERS = (
    "look at the spread of the features, or take others (--features), or other "
    "metrics (--metrics)"
)


def evaluate(
    samples: Samples,
    reference: Samples | Statistics,
    extractor: FeatureExtractor,
    metrics: str | None = None,
    *,
    seed: int | None = None,
    mesh: Mesh | None = None,
    statistics_out: str | os.PathLike | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Measurement]:
    """Measures samples against a reference.

    Args:
      samples: see `read_samples`.
      reference: see `read_reference`; real data, best at the samples' rounding.
      extractor: features of both.
      metrics: names of `MEASURES` joined by commas, ``all``, or None for the usual.
      seed: noise seed of the samples, for the protocol.
      mesh: devices that share images and pairs.
      statistics_out: writes the reference's moments and their protocol to this file.
      progress: whether to show bars of the feature extraction.
      say: gets a line before each step, and warnings.

    Returns:
      A `Measurement` for each metric, in their order. One that cannot be computed of
      these samples says why (`Measurement.failed`), and the others stand.

    Raises:
      ValueError: samples and reference that do not fit each other, unknown metrics,
        metrics that need what is not there, or if no metric can be computed.
    """
    known = isinstance(reference, Samples)
    has = {"reference"} if known else set()
    has |= {"labels"} if samples.labels is not None else set()
    # What can be refused is refused before the features are computed.
    choose(metrics, frozenset(has | {"logits"}))
    if known:
        _check_alike(samples, reference)
    else:
        _check_recorded(reference, samples, extractor)
    options = {"mesh": mesh, "progress": progress}
    say(f"features {extractor.name} of {len(samples)} samples")
    own = extractor.extract(samples.rows, prepare=samples.prepare, **options)
    has |= {"logits"} if own.logits is not None else set()
    names = choose(metrics, frozenset(has))
    width = own.features.shape[1]
    if metrics is None and extractor.name == "pixels" and width > _WIDE:
        names = tuple(name for name in names if name != "frechet")
        say(
            f"frechet is left out: of {width} pixels it takes minutes and says little; "
            "--features=random_convolutions or inception:PATH has it, and "
            "--metrics=frechet,kid computes it all the same"
        )
    if known:
        say(f"features {extractor.name} of {len(reference)} reference images")
        real = extractor(reference.rows, prepare=reference.prepare, **options)
        moments, record = Moments.of(real, mesh=mesh), _record(reference, extractor)
    else:
        real, moments = None, reference.moments
        record = _recorded(reference, extractor.name, own, say)
    if statistics_out is not None:
        save_statistics(statistics_out, moments, record)
        say(f"statistics of the reference in {statistics_out}")
    measured = Measured(own, moments, samples.labels, real, mesh)
    count, width = own.features.shape
    if "frechet" in names and count < _ROWS_PER_FEATURE * width:
        singular = ", and the covariance is singular" if count <= width else ""
        say(
            f"warning: {count} samples for {width} features make the Frechet distance "
            f"too large{singular}; compare it only with numbers of {count} samples, or "
            "use kid, which is unbiased"
        )
    out = {}
    for name in names:
        settings = MEASURES[name].settings(measured)
        with Waiting(functools.partial(_still, say, name), _SECONDS) as waiting:
            value, error, why = _run(name, measured, settings)
        if why:
            say(f"warning: {name} cannot be computed: {why}")
        else:
            say(f"{name}: {waiting.seconds:.1f} s")
        protocol = Protocol(
            statistic=name,
            features=extractor.name,
            features_fingerprint=extractor.fingerprint,
            samples=count,
            reference_samples=record["count"],
            reference=record["source"],
            reference_fingerprint=record["fingerprint"],
            rounding=samples.rounding,
            value_range="none" if samples.value_range == "none" else "[-1, 1]",
            seed=seed,
            settings=tuple(settings.items()),
        )
        known_error = float(error) if math.isfinite(error) else None
        out[name] = Measurement(float(value), protocol, known_error, why)
    if all(found.failed for found in out.values()):
        reasons = "; ".join(f"{name}: {found.failed}" for name, found in out.items())
        raise ValueError(
            f"none of the metrics can be computed of samples {samples.source} and "
            f"reference {reference.source}: {reasons}"
        )
    if "memorised" in names and not out["memorised"].failed:
        say(str(measured.memorisation))
    return out


def usual_features(
    samples: Samples,
    reference: Samples | Statistics,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """The features of samples where nobody says which, as `features.extractor` reads.

    They are those that given statistics were made with; the pixels of small samples;
    and random convolutions of images of more than 1000 values, of which the Frechet
    distance of pixels takes minutes and compares brightness.

    Args:
      samples: what is measured.
      reference: what with.
      say: gets a line where it is not the pixels.

    Raises:
      ValueError: on statistics of features that need a file, or that are not recorded.
    """
    if isinstance(reference, Statistics):
        name = reference.protocol.get("features", "")
        seeded = re.fullmatch(r"random_convolutions\(seed=(\d+)\)", name)
        if seeded:
            return f"random_convolutions:{seeded[1]}"
        if name in ("digits", "pixels"):
            return name
        raise ValueError(
            f"{reference.source} holds statistics of "
            f"{f'features {name}' if name else 'features that are not recorded'}; say "
            "how the samples are measured: --features=inception:PATH for example"
        )
    shape = samples.rows.shape[1:]
    if math.prod(shape) <= _WIDE or len(shape) != 3 or shape[2] not in (1, 3):
        return "pixels"
    say(
        f"features random_convolutions, since samples have {math.prod(shape)} values: "
        "untrained, they need no file; --features=inception:PATH makes numbers that "
        "compare with papers, --features=pixels takes the values themselves"
    )
    return "random_convolutions"


def _run(
    name: str, measured: Measured, settings: Mapping[str, Any]
) -> tuple[float, float, str]:
    """A number, its error, and why there is none, which is no matter of the others."""
    why = MEASURES[name].lacks(measured)
    if why:
        return math.nan, math.nan, why
    try:
        value, error = MEASURES[name].run(measured, settings)
    except (np.linalg.LinAlgError, ValueError) as refused:
        # Enough rows, and finite ones: what is left is how the features spread.
        why = f"{str(refused).rstrip('.')}; {_OTHERS}"
        return math.nan, math.nan, why
    if not math.isfinite(value):
        return math.nan, math.nan, f"it came out as {value}; {_OTHERS}"
    return value, error, ""


def _still(say: Callable[[str], None], name: str, seconds: float) -> None:
    say(f"{name} ... {seconds:.0f} s")


def _check_alike(samples: Samples, reference: Samples) -> None:
    if samples.rows.shape[1:] != reference.rows.shape[1:]:
        raise ValueError(
            f"samples and reference must have one shape, got {samples.rows.shape[1:]} "
            f"in {samples.source} and {reference.rows.shape[1:]} in {reference.source};"
            " pass a --reference of the samples' size, channels included"
        )
    a, b = samples.value_range == "none", reference.value_range == "none"
    if a != b or samples.rounding != reference.rounding:
        raise ValueError(
            "samples and reference must have one kind of range and one rounding, got "
            f"{samples.value_range}, {samples.rounding} and {reference.value_range}, "
            f"{reference.rounding}; say the range with --range"
        )


def _record(reference: Samples, extractor: FeatureExtractor) -> dict[str, Any]:
    """What a file of statistics says of itself."""
    return {
        "features": extractor.name,
        "features_fingerprint": extractor.fingerprint,
        "count": len(reference),
        "source": reference.source,
        "fingerprint": reference.fingerprint,
        "rounding": reference.rounding,
    }


def _check_recorded(
    reference: Statistics, samples: Samples, extractor: FeatureExtractor
) -> None:
    asked = {
        "features_fingerprint": extractor.fingerprint,
        "rounding": samples.rounding,
    }
    for name, value in asked.items():
        if reference.protocol.get(name, value) != value:
            raise ValueError(
                f"{reference.source} was made with {name} {reference.protocol[name]} "
                f"({reference.protocol['features']}), the samples have {value} "
                f"({extractor.name}); measure both in one way (--features, --rounding)"
            )


def _recorded(
    reference: Statistics, name: str, own: Extracted, say: Callable[[str], None]
) -> dict[str, Any]:
    """The record of given statistics, which must have the samples' width."""
    width, expected = own.features.shape[1], len(reference.moments.mean)
    if width != expected:
        raise ValueError(
            f"{reference.source} has statistics of {expected} features, {name} makes "
            f"{width}; use the extractor they were made with (--features)"
        )
    if reference.protocol:
        return reference.protocol
    say(
        f"warning: {reference.source} does not say its extractor, rounding and count; "
        "they are taken to fit, and stay unknown in the protocol"
    )
    mean, covariance = reference.moments.mean, reference.moments.covariance
    digest = fingerprint("statistics", {"mean": mean, "covariance": covariance})
    return {"count": None, "source": reference.source, "fingerprint": digest}


def table(measurements: Mapping[str, Measurement]) -> list[str]:
    """The numbers as lines of text."""
    lines = [f"{'metric':<20}{'value':>12}{'std. error':>12}  "]
    for name, found in measurements.items():
        if found.failed:
            lines.append(f"{name:<20}{'-':>12}{'':>12}  {found.failed}")
            continue
        error = "" if found.error is None else f"{found.error:.2g}"
        settings = ", ".join(f"{k}={v}" for k, v in found.protocol.settings)
        note = MEASURES[name].line + (f" ({settings})" if settings else "")
        lines.append(f"{name:<20}{found.value:>12.5g}{error:>12}  {note}")
    return lines


def to_report(measurements: Mapping[str, Measurement], **facts: Any) -> dict[str, Any]:
    """A report that JSON can hold: measurements, versions and whatever is added."""
    found = {name: value.to_dict() for name, value in measurements.items()}
    return {"measurements": found, "versions": versions(), **facts}


def read_report(path: str | os.PathLike) -> dict[str, Measurement]:
    """The measurements of a report of `to_report`.

    Raises:
      ValueError: no such file, or one without measurements.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no report at {path}")
    try:
        found = json.loads(path.read_text())["measurements"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(
            f"{path} is no report of distilljax evaluate; write one with --out"
        ) from None
    return {name: Measurement.from_dict(value) for name, value in found.items()}
