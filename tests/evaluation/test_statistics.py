"""Distances between feature sets, against closed forms and direct computation."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from distilljax.evaluation import statistics


def features(seed, rows=60, columns=5, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, (rows, columns))


def standardised(x, mean, root):
    """The same rows with exactly this mean and the covariance ``root root^T``."""
    centred = x - x.mean(0)
    inverse = np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False, ddof=1)))
    return centred @ inverse.T @ root.T + mean


def by_matrix_root(a, b):
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b).real)
    shift = a.mean(0) - b.mean(0)
    return shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross


@pytest.mark.parametrize("seed", range(3))
def test_frechet_matches_the_matrix_square_root(seed):
    a, b = features(seed, 80, 12), 0.7 * features(seed + 10, 50, 12, 0.3)
    np.testing.assert_allclose(
        statistics.frechet_distance(a, b), by_matrix_root(a, b), rtol=1e-6
    )


def test_frechet_matches_the_matrix_square_root_on_digits():
    """Pixels that are never inked make the covariance singular; they add nothing."""
    x = load_digits().data / 8 - 1
    a, b = x[::2], x[1::2]
    inked = (a.std(0) > 0) & (b.std(0) > 0)
    assert 50 < inked.sum() < 64
    never = ((a[:, ~inked].mean(0) - b[:, ~inked].mean(0)) ** 2).sum()
    spread = a[:, ~inked].var(0, ddof=1).sum() + b[:, ~inked].var(0, ddof=1).sum()
    expected = by_matrix_root(a[:, inked], b[:, inked]) + never + spread
    np.testing.assert_allclose(statistics.frechet_distance(a, b), expected, rtol=1e-6)


def test_frechet_of_gaussians_in_closed_form():
    """Commuting covariances: the sum of squared differences of standard deviations."""
    std_a, std_b = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.1, 0.5])
    mean = np.array([1.0, -2.0, 0.0])
    turn = np.linalg.qr(features(5, 3, 3))[0]
    a = standardised(features(0, 40, 3), 0.0, turn * std_a)
    b = standardised(features(1, 70, 3), mean, turn * std_b)
    expected = np.sum(mean**2) + np.sum((std_a - std_b) ** 2)
    assert statistics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_uses_unbiased_covariances():
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [1.0]])
    assert statistics.frechet_distance(a, b) == pytest.approx(2.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10), st.integers(1, 6))
def test_frechet_is_a_symmetric_distance(seed, scale, columns):
    a, b = features(seed, 20, columns), scale * features(seed + 1, 15, columns, 1.0)
    distance = statistics.frechet_distance(a, b)
    assert distance > 0
    assert statistics.frechet_distance(b, a) == pytest.approx(distance, rel=1e-9)
    assert statistics.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    turn = np.linalg.qr(features(seed + 2, columns, columns))[0]
    turned = statistics.frechet_distance(a @ turn + 7, b @ turn + 7)
    assert turned == pytest.approx(distance, rel=1e-8)


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
    monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", block)
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
    monkeypatch.setattr(statistics, "_BANDWIDTH_ROWS", 3)
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
    monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", block)
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
    monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", block)
    x, y = features(0, 20, 3), features(1, 30, 3)
    expected = np.linalg.norm(x[:, None] - y[None], axis=2).min(1)
    np.testing.assert_allclose(statistics.nearest_distance(x, y), expected, rtol=1e-12)
    assert (statistics.nearest_distance(y[:5], y) == 0).all()


@pytest.mark.parametrize("block", [1, 2**22])
def test_leave_one_out_distance(monkeypatch, block):
    monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", block)
    y = features(1, 30, 3)
    distances = np.linalg.norm(y[:, None] - y[None], axis=2) + 1e9 * np.eye(30)
    np.testing.assert_allclose(
        statistics.leave_one_out_distance(y), distances.min(1), rtol=1e-12
    )
    twice = statistics.leave_one_out_distance(np.concatenate([y, y[:1]]))
    assert (twice == 0).sum() == 2


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: statistics.frechet_distance(x[:, :, None], x), r"a .*\[N, D\]"),
        (lambda x: statistics.frechet_distance(x, x[:1]), r"b .*at least 2 rows"),
        (lambda x: statistics.frechet_distance(x, x[:, :2]), r"a and b .*columns"),
        (lambda x: statistics.frechet_distance(x, np.nan * x), r"b .*finite, got 300"),
        (lambda x: statistics.frechet_distance(x, x + 1j), r"b .*real numbers"),
        (lambda x: statistics.mmd(x, x, 0.0), r"bandwidth .*positive .*0.0"),
        (lambda x: statistics.mmd(x, x, np.inf), r"bandwidth .*positive .*inf"),
        (lambda x: statistics.mmd(x[:0], x), r"samples .*got shape \(0, 5\)"),
        (lambda x: statistics.precision_recall(x, x, 0), r"k .*at least 1, got 0"),
        (lambda x: statistics.precision_recall(x, x[:3]), r"samples .*at least 4"),
        (lambda x: statistics.nearest_distance(x, x[:0]), r"reference .*1 rows"),
        (lambda x: statistics.leave_one_out_distance(x[:1]), r"reference .*2 rows"),
    ],
)
def test_bad_input_is_named(call, expected):
    with pytest.raises(ValueError, match=expected):
        call(features(0))
