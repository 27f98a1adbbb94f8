"""Statistics of neighbours against brute force."""

import numpy as np
import pytest

from distilljax.evaluation import statistics
from distilljax.evaluation.statistics import pairs


def features(seed, rows=60, columns=5, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, (rows, columns))


def brute_precision_recall(reference, samples, k):
    def radii(x):
        return [sorted(np.linalg.norm(x - p, axis=1))[k] for p in x]

    def share(points, centres):
        reach = radii(centres)
        return np.mean(
            [
                any(
                    np.linalg.norm(p - c) <= r
                    for c, r in zip(centres, reach, strict=True)
                )
                for p in points
            ]
        )

    return share(samples, reference), share(reference, samples)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [1, 100, 2**22])
def test_precision_recall_matches_brute_force(monkeypatch, k, block):
    monkeypatch.setattr(pairs, "_BLOCK_ELEMENTS", block)
    reference, samples = features(0, 40, 4), 0.8 * features(1, 33, 4, 1.2)
    expected = brute_precision_recall(reference, samples, k)
    assert all(0 < share < 1 for share in expected)
    assert statistics.precision_recall(reference, samples, k) == expected


def test_precision_recall_of_obvious_cases():
    x = features(0, 200, 2)
    two_modes = np.concatenate([x, x + 100])
    same = statistics.precision_recall(two_modes, two_modes)
    assert same == (1.0, 1.0)
    assert statistics.precision_recall(x, x + 100) == (0.0, 0.0)
    dropped = statistics.precision_recall(reference=two_modes, samples=x)
    assert dropped == (1.0, 0.5)
    invented = statistics.precision_recall(reference=x, samples=two_modes)
    assert invented == (0.5, 1.0)


def test_precision_recall_finds_repeated_points_in_their_empty_balls():
    """Radius 0, far from the origin: only rounding is between inside and outside."""
    x = np.repeat(features(0, 30, 8) + 1e3, 4, axis=0)
    assert statistics.precision_recall(x, x[::-1] + 0.0) == (1.0, 1.0)
    assert statistics.precision_recall(x, x + 1e-2) == (0.0, 0.0)


@pytest.mark.parametrize("block", [1, 2**22])
def test_nearest_distance(monkeypatch, block):
    monkeypatch.setattr(pairs, "_BLOCK_ELEMENTS", block)
    x, y = features(0, 20, 3), features(1, 30, 3)
    expected = np.linalg.norm(x[:, None] - y[None], axis=2).min(1)
    np.testing.assert_allclose(statistics.nearest_distance(x, y), expected, rtol=1e-12)
    assert (statistics.nearest_distance(y[:5], y) == 0).all()


@pytest.mark.parametrize("block", [1, 2**22])
def test_leave_one_out_distance(monkeypatch, block):
    monkeypatch.setattr(pairs, "_BLOCK_ELEMENTS", block)
    y = features(1, 30, 3)
    distances = np.linalg.norm(y[:, None] - y[None], axis=2) + 1e9 * np.eye(30)
    np.testing.assert_allclose(
        statistics.leave_one_out_distance(y), distances.min(1), rtol=1e-12
    )
    twice = statistics.leave_one_out_distance(np.concatenate([y, y[:1]]))
    assert (twice == 0).sum() == 2


def brute_density_coverage(reference, samples, k):
    distances = np.linalg.norm(reference[:, None] - samples[None], axis=2)
    own = np.linalg.norm(reference[:, None] - reference[None], axis=2)
    radii = np.sort(own, axis=1)[:, k, None]
    inside = distances <= radii
    return inside.sum() / (k * len(samples)), inside.any(1).mean()


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_match_brute_force(k):
    reference, samples = features(0, 40, 4), 0.8 * features(1, 33, 4, 0.7)
    expected = brute_density_coverage(reference, samples, k)
    assert expected[1] < 1
    found = statistics.density_coverage(reference, samples, k)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_density_and_coverage_of_equal_laws_have_the_papers_means():
    found = [
        statistics.density_coverage(
            features(2 * i, 400, 3), features(2 * i + 1, 400, 3)
        )
        for i in range(12)
    ]
    assert np.mean([v.density for v in found]) == pytest.approx(1, abs=0.03)
    assert np.mean([v.coverage for v in found]) == pytest.approx(1 - 2**-5, abs=0.01)


def test_outliers_inflate_recall_but_not_coverage():
    reference = features(0, 200, 3)
    centre = 0.05 * features(1, 190, 3)
    samples = np.concatenate([centre, 10 * features(2, 10, 3)])
    assert statistics.precision_recall(reference, centre).recall < 0.1
    assert statistics.precision_recall(reference, samples).recall > 0.9
    assert statistics.density_coverage(reference, samples).coverage < 0.5


def test_nearest_ratio():
    x, y = features(0, 20, 3), features(1, 30, 3)
    sorted_ = np.sort(np.linalg.norm(x[:, None] - y[None], axis=2), axis=1)
    expected = sorted_[:, 0] / sorted_[:, 1]
    np.testing.assert_allclose(statistics.nearest_ratio(x, y), expected, rtol=1e-9)
    assert (statistics.nearest_ratio(y[:5], y) == 0).all()
    twice = np.concatenate([y, y])
    assert (statistics.nearest_ratio(y[:5], twice) == 1).all()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: statistics.precision_recall(x, x, 0), r"k .*at least 1, got 0"),
        (lambda x: statistics.precision_recall(x, x[:3]), r"samples .*at least 4"),
        (
            lambda x: statistics.density_coverage(x[:5], x),
            r"reference .*6 rows for k=5",
        ),
        (lambda x: statistics.density_coverage(x, x, 0), r"k .*the paper uses 5"),
        (lambda x: statistics.nearest_distance(x, x[:0]), r"reference .*1 rows"),
        (lambda x: statistics.nearest_ratio(x, x[:1]), r"reference .*2 rows"),
        (lambda x: statistics.leave_one_out_distance(x[:1]), r"reference .*2 rows"),
    ],
)
def test_bad_input_is_named(call, expected):
    with pytest.raises(ValueError, match=expected):
        call(features(0))
