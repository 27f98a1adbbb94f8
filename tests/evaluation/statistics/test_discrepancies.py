"""Kernel and energy distances against double loops and scipy."""

import numpy as np
import pytest

from distilljax.evaluation import statistics
from distilljax.evaluation.statistics import discrepancies, pairs


def features(seed, rows=60, columns=5, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, (rows, columns))


def loop_mmd(x, y, width):
    def kernel(p, q):
        return np.exp(-np.sum((p - q) ** 2) / (2 * width**2))

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    xy = sum(kernel(p, q) for p in x for q in y)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


@pytest.mark.parametrize("bandwidth", [0.5, 2.0])
@pytest.mark.parametrize("block", [1, 64, 2**22])
def test_mmd_matches_a_double_loop(monkeypatch, bandwidth, block):
    monkeypatch.setattr(pairs, "_BLOCK_ELEMENTS", block)
    x, y = features(0, 25, 3), features(1, 31, 3, 0.5)
    np.testing.assert_allclose(
        statistics.mmd(x, y, bandwidth), loop_mmd(x, y, bandwidth), rtol=1e-10
    )


def test_mmd_takes_the_median_distance_of_the_reference():
    x, y = features(0, 25, 3), features(1, 31, 3, 0.5)
    pairs = [np.linalg.norm(p - q) for i, p in enumerate(y) for q in y[:i]]
    assert statistics.median_bandwidth(y) == pytest.approx(np.median(pairs))
    assert statistics.mmd(x, y) == pytest.approx(loop_mmd(x, y, np.median(pairs)))


def test_median_bandwidth_of_many_rows_uses_evenly_spaced_ones(monkeypatch):
    monkeypatch.setattr(discrepancies, "_BANDWIDTH_ROWS", 3)
    y = np.array([[0.0], [50.0], [1.0], [70.0], [3.0]])
    assert statistics.median_bandwidth(y) == pytest.approx(2.0)


def test_mmd_is_unbiased():
    draws = [
        statistics.mmd(features(2 * i, 30, 2), features(2 * i + 1, 30, 2), 1.0)
        for i in range(200)
    ]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws)) < 4 * error
    assert min(draws) < 0 < max(draws)


def test_median_bandwidth_refuses_a_constant_reference():
    with pytest.raises(ValueError, match=r"reference .* median .* pass bandwidth="):
        statistics.median_bandwidth(np.ones((5, 2)) * 0.1)


def test_mmd_error_is_that_of_other_draws():
    found = [
        statistics.mmd_estimate(
            features(2 * i, 80, 3), features(2 * i + 1, 60, 3, 0.5), 1.5
        )
        for i in range(100)
    ]
    spread = np.std([v.value for v in found])
    assert np.mean([v.error for v in found]) == pytest.approx(spread, rel=0.25)


def test_cmmd_is_the_scaled_biased_mmd_of_unit_rows():
    x, y = features(0, 25, 8), features(1, 31, 8, 0.5)
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))

    def mean(a, b):
        return np.mean([np.exp(-((p - q) ** 2).sum() / 200) for p in a for q in b])

    expected = 1000 * (mean(u, u) + mean(v, v) - 2 * mean(u, v))
    found = statistics.cmmd(x, y)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert statistics.cmmd(3 * x, y).value == pytest.approx(found.value, rel=1e-9)
    assert statistics.cmmd(x, x).value == pytest.approx(0, abs=1e-10)


def test_energy_distance_on_the_line_is_the_square_of_scipys():
    from scipy.stats import energy_distance

    x, y = features(0, 70, 1), 1.5 * features(1, 45, 1, 0.4)
    expected = energy_distance(x[:, 0], y[:, 0]) ** 2
    assert statistics.energy_distance(x, y).value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("block", [64, 2**22])
def test_energy_distance_matches_all_pairs(monkeypatch, block):
    monkeypatch.setattr(pairs, "_BLOCK_ELEMENTS", block)
    x, y = features(0, 25, 3), features(1, 31, 3, 0.5)

    def mean(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2).mean()

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert statistics.energy_distance(x, y).value == pytest.approx(expected, rel=1e-10)
    # Far from the origin a repeated row is still at distance 0 from itself.
    far = statistics.energy_distance(x + 1e4, x + 1e4)
    assert far.value == pytest.approx(0, abs=1e-9)


def test_energy_error_is_that_of_other_draws():
    found = [
        statistics.energy_distance(
            features(2 * i, 80, 3), features(2 * i + 1, 60, 3, 1)
        )
        for i in range(100)
    ]
    spread = np.std([v.value for v in found])
    assert np.mean([v.error for v in found]) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: statistics.mmd(x, x, 0.0), r"bandwidth .*positive .*0.0"),
        (lambda x: statistics.mmd(x, x, np.inf), r"bandwidth .*positive .*inf"),
        (lambda x: statistics.mmd(x[:0], x), r"samples .*got shape \(0, 5\)"),
        (lambda x: statistics.cmmd(x, 0 * x), r"reference .*norm 0, got 60"),
        (lambda x: statistics.cmmd(x, x, bandwidth=-1), r"bandwidth .*positive"),
        (lambda x: statistics.energy_distance(x, x[:, :2]), r"equally many columns"),
    ],
)
def test_bad_input_is_named(call, expected):
    with pytest.raises(ValueError, match=expected):
        call(features(0))
