"""One row is the mean over seeds of the single statistics; a report reads in words."""

import json

import numpy as np
import pytest

from distilljax.evaluation import statistics
from distilljax.evaluation.classifier import PixelClassifier
from distilljax.evaluation.summary import (
    best_students,
    in_words,
    methods_of,
    ratio_to_teacher,
    summarise,
)


@pytest.fixture(scope="module")
def case(digits):
    x, labels = digits
    x, labels = x[:400], labels[:400]
    rng = np.random.default_rng(0)
    seeds = [
        np.clip(x[:300] + 0.5 * rng.normal(size=(300, 8, 8, 1)), -1, 1).astype("f4")
        for _ in range(2)
    ]
    return seeds, labels[:300], x, labels, PixelClassifier.fit(x, labels)


def test_every_number_is_the_mean_over_seeds(case):
    seeds, labels, x, _, classifier = case
    found = summarise(*case)
    real = x.reshape(400, -1)
    rows = [s.reshape(300, -1) for s in seeds]
    frechet = [statistics.frechet_distance(r, real) for r in rows]
    assert found["frechet"] == pytest.approx(np.mean(frechet))
    assert found["frechet_std"] == pytest.approx(np.std(frechet, ddof=1))
    assert found["mmd"] == pytest.approx(
        np.mean([statistics.mmd(r, real) for r in rows])
    )
    quality = np.mean([statistics.precision_recall(real, r) for r in rows], axis=0)
    assert [found["precision"], found["recall"]] == pytest.approx(quality)
    accuracy = [classifier.accuracy(s, labels) for s in seeds]
    assert found["accuracy"] == pytest.approx(np.mean(accuracy))
    assert (found["seeds"], found["samples"]) == (2, 300)
    assert found["copies"] is False
    json.dumps(found, allow_nan=False)


def test_one_seed_has_no_spread_and_copies_are_told(case):
    _, labels, x, reference_labels, classifier = case
    found = summarise([x[:300]], labels, x, reference_labels, classifier)
    assert found["frechet_std"] is None
    assert found["copied"] == 1.0
    assert found["copies"] is True
    assert found["accuracy"] == classifier.accuracy(x[:300], labels)


@pytest.mark.parametrize(
    ("position", "change", "expected"),
    [
        (0, lambda v: [], r"samples_by_seed must hold .*at least one seed, got none"),
        (0, lambda v: [v[0], v[1] * 2], r"samples_by_seed\[1\] must lie in \[-1, 1\]"),
        (0, lambda v: [v[0], v[1] * np.nan], r"samples_by_seed\[1\] must be finite"),
        (0, lambda v: [v[0][..., 0]], r"samples_by_seed\[0\] must be images"),
        (0, lambda v: [v[0][:, :4]], r"samples_by_seed\[0\] must have images of shape"),
        (0, lambda v: [v[0], v[1][:9]], r"samples_by_seed\[1\] must have 300 images"),
        (1, lambda v: v[:9], r"labels must have shape \(300,\)"),
        (1, lambda v: v + 5, r"labels must be in 0..9, got values from 5 to 14"),
        (2, lambda v: v[:0], r"reference must hold at least one image"),
        (3, lambda v: v.astype(float), r"reference_labels must be integers"),
    ],
)
def test_bad_input_is_named(case, position, change, expected):
    changed = list(case)
    changed[position] = change(changed[position])
    with pytest.raises(ValueError, match=expected):
        summarise(*changed)


def test_best_students_and_ratios(report):
    assert methods_of(report) == ["scm", "dmd2"]
    best = best_students(report)
    assert {k: row["method"] for k, row in best.items()} == {1: "scm", 4: "dmd2"}
    assert ratio_to_teacher(report, best[1]) == pytest.approx(1.5)
    report["students"][0]["frechet"] = None
    assert best_students(report)[1]["method"] == "dmd2"
    report["teacher"]["frechet"] = None
    assert ratio_to_teacher(report, best[4]) is None


def test_the_result_in_words(report):
    words = in_words(report)
    assert "Frechet distance of 0.200 with 50 network evaluations" in words
    assert "At 1 evaluation scm is best with 0.300, 1.50 times" in words
    assert "At 4 evaluations dmd2 is best with 0.220, 1.10 times" in words
    assert "At least 99.9 % of a student's samples are recognised" in words
    assert "no sign" in words
    report["students"][1]["copies"] = True
    assert "Copies of training data: scm at NFE 4;" in in_words(report)
    report["teacher"]["frechet"] = None
    report["students"] = []
    assert "not known" in in_words(report)
