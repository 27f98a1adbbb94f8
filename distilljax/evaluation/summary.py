"""The rows of the results: how one is computed, and what a set of them says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from distilljax.evaluation.classifier import Classifier
from distilljax.evaluation.inputs import check_images, check_labels
from distilljax.evaluation.memorisation import memorisation_check
from distilljax.evaluation.statistics import (
    frechet_distance,
    median_bandwidth,
    mmd,
    precision_recall,
)


def summarise(
    samples_by_seed: Sequence[ArrayLike],
    labels: ArrayLike,
    reference: ArrayLike,
    reference_labels: ArrayLike,
    classifier: Classifier,
) -> dict[str, Any]:
    """Statistics of one sampler on pixels.

    Args:
      samples_by_seed: for every noise seed images ``[N, H, W, C]`` in [-1, 1], drawn
        with the same labels.
      labels: ``[N]`` classes that the samples were drawn with.
      reference: the data, images ``[M, H, W, C]`` in [-1, 1].
      reference_labels: ``[M]`` classes of the data; they say which classes exist.
      classifier: judges `accuracy`, for example a `PixelClassifier` of the data.

    Returns:
      A dict that JSON can hold: ``frechet``, ``mmd``, ``accuracy``, ``precision``,
      ``recall`` and ``copied`` (see `Memorisation.share`), each the mean over seeds;
      ``frechet_std``, the standard deviation of one seed (ddof 1, ``None`` for a single
      seed); ``copied_expected``, ``copied_limit`` and the verdict ``copies``, from
      all seeds together; ``seeds`` and ``samples`` (a seed), the counts.

    Raises:
      ValueError: no seeds, images of the wrong rank or outside [-1, 1], NaN, labels of
        another length or of classes that the reference lacks.
    """
    real = check_images("reference", reference)
    classes = check_labels("reference_labels", reference_labels, len(real))
    if not len(samples_by_seed):
        raise ValueError(
            "samples_by_seed must hold the images of at least one seed, got none; "
            "sample with one noise seed or more."
        )
    images = [
        check_images(f"samples_by_seed[{i}]", x, real.shape[1:])
        for i, x in enumerate(samples_by_seed)
    ]
    targets = check_labels("labels", labels, len(images[0]), int(classes.max()) + 1)
    for i, x in enumerate(images):
        if len(x) != len(targets):
            raise ValueError(
                f"samples_by_seed[{i}] must have {len(targets)} images like the first "
                f"seed, got {len(x)}; draw every seed with the same labels."
            )

    y = real.reshape(len(real), -1)
    rows = [x.reshape(len(x), -1) for x in images]
    width = median_bandwidth(y)
    frechet = [frechet_distance(x, y) for x in rows]
    quality = [precision_recall(reference=y, samples=x) for x in rows]
    copied = memorisation_check(np.concatenate(rows), y)
    return {
        "frechet": float(np.mean(frechet)),
        "frechet_std": float(np.std(frechet, ddof=1)) if len(rows) > 1 else None,
        "mmd": float(np.mean([mmd(x, y, width) for x in rows])),
        "accuracy": float(np.mean([classifier.accuracy(x, targets) for x in images])),
        "precision": float(np.mean([q.precision for q in quality])),
        "recall": float(np.mean([q.recall for q in quality])),
        "copied": copied.share,
        "copied_expected": copied.expected,
        "copied_limit": copied.limit,
        "copies": copied.copies,
        "seeds": len(rows),
        "samples": len(targets),
    }


def number(value: Any) -> float | None:
    """A finite float, or ``None`` for what is missing or not finite."""
    return float(value) if value is not None and np.isfinite(value) else None


def methods_of(report: Mapping[str, Any]) -> list[str]:
    """The methods of a report's students, in the order in which they first come."""
    return list(dict.fromkeys(row["method"] for row in report["students"]))


def best_students(report: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """For every NFE, in rising order, the row with the lowest Frechet distance."""
    best: dict[int, Mapping[str, Any]] = {}
    for row in sorted(report["students"], key=lambda r: r["nfe"]):
        value = number(row["frechet"])
        if value is None:
            continue
        if row["nfe"] not in best or value < best[row["nfe"]]["frechet"]:
            best[row["nfe"]] = row
    return best


def ratio_to_teacher(report: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """A row's Frechet distance over the teacher's, if both are known."""
    own, teacher = number(row["frechet"]), number(report["teacher"].get("frechet"))
    return own / teacher if own is not None and teacher else None


def in_words(report: Mapping[str, Any]) -> str:
    """The result as a few sentences.

    Args:
      report: ``teacher`` with ``nfe`` and statistics as `summarise` returns them,
        ``students`` with the same and ``method`` and ``nfe`` in every row.

    Returns:
      Teacher, best student of every NFE, worst accuracy and recall, and copies.
    """
    teacher, rows = report["teacher"], list(report["students"])
    goal = number(teacher.get("frechet"))
    says = [
        f"The teacher reaches a Frechet distance of {goal:.3f} with {teacher['nfe']} "
        "network evaluations a sample."
        if goal is not None
        else "The teacher's Frechet distance is not known."
    ]
    for nfe, row in best_students(report).items():
        ratio = ratio_to_teacher(report, row)
        times = f", {ratio:.2f} times the teacher's" if ratio is not None else ""
        says.append(
            f"At {nfe} evaluation{'s' * (nfe != 1)} {row['method']} is best with "
            f"{row['frechet']:.3f}{times}."
        )
    for name, meaning in (
        ("accuracy", "of a student's samples are recognised as their label"),
        ("recall", "of the data is covered by a student's samples"),
    ):
        known = [v for r in rows if (v := number(r.get(name))) is not None]
        if known:
            least = math.floor(1000 * min(known) + 1e-9) / 10
            says.append(f"At least {least:.1f} % {meaning}.")
    copied = [r for r in [teacher, *rows] if number(r.get("copied")) is not None]
    if copied:
        found = [
            f"{r.get('method', 'teacher')} at NFE {r['nfe']}"
            for r in copied
            if r.get("copies")
        ]
        usual = number(copied[0].get("copied_expected"))
        beside = f" ({100 * usual:.2f} % of real data)" if usual is not None else ""
        says.append(
            f"Copies of training data: {', '.join(found) or 'no sign'}; at most "
            f"{100 * max(r['copied'] for r in copied):.2f} % of a sampler's images lie "
            f"suspiciously near to a training example{beside}."
        )
    return " ".join(says)
