"""Moments stream and merge exactly; the Frechet distance against closed forms."""

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


@pytest.mark.parametrize("sizes", [(500,), (1, 499), (7, 200, 293), (100,) * 5])
def test_streamed_moments_equal_those_of_all_rows(sizes):
    x = features(0, 500, 12, 3.0) * np.geomspace(1e-2, 1e2, 12)
    edges = np.cumsum((0, *sizes))
    chunks = [x[a:b] for a, b in zip(edges[:-1], edges[1:])]
    found = statistics.moments_of(chunks)
    assert found.count == 500
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    expected = np.cov(x, rowvar=False, ddof=1)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_array_less(np.abs(found.covariance - expected) / scale, 1e-12)
    # Two processes that each streamed a part, in either order.
    first = statistics.moments_of(chunks[:1])
    for part in chunks[1:]:
        first = statistics.Moments.of(part).merge(first)
    np.testing.assert_allclose(first.scatter, found.scatter, rtol=1e-11, atol=1e-11)
    other = features(1, 80, 12)
    assert statistics.frechet_distance(found, other) == pytest.approx(
        statistics.frechet_distance(x, other), rel=1e-12
    )


def test_moments_far_from_the_origin_keep_their_digits():
    """The textbook sum of squares loses all of them here."""
    x = features(0, 300, 3)
    found = statistics.moments_of([x[:100] + 1e6, x[100:] + 1e6])
    expected = np.cov(x, rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rows", [6, 60])
def test_frechet_of_singular_covariances(rows):
    """Turned into 40 features, a few features keep their distance; fewer rows too."""
    a, b = features(0, rows, 5), 0.3 * features(1, 70, 5, 0.5)
    turn = np.linalg.qr(features(2, 40, 5))[0]
    expected = by_matrix_root(a, b)
    found = statistics.frechet_distance(a @ turn.T + 1, b @ turn.T + 1)
    assert found == pytest.approx(expected, rel=1e-10)


def test_frechet_of_fewer_rows_than_features():
    a, b = features(0, 6, 40), features(1, 9, 40, 0.5)
    basis = np.linalg.qr(np.concatenate([a - a.mean(0), b - b.mean(0)]).T)[0]
    cross = sum(
        np.linalg.svd(
            (a - a.mean(0)) @ basis @ basis.T @ (b - b.mean(0)).T, compute_uv=False
        )
    ) / np.sqrt(5 * 8)
    shift = a.mean(0) - b.mean(0)
    spread = a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    expected = shift @ shift + spread - 2 * cross
    assert statistics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert statistics.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_error_is_that_of_other_draws():
    reference = statistics.Moments.of(features(1000, 4000, 4))
    draws = [1.3 * features(i, 200, 4, 0.3) for i in range(60)]
    spread = np.std([statistics.frechet_distance(x, reference) for x in draws])
    errors = [statistics.frechet_error(x, reference) for x in draws]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize("columns", [4, 30])
def test_frechet_error_is_the_jackknife_of_the_distance(columns):
    """Also with fewer rows in a group than features."""
    x, reference = features(0, 24, columns), features(1, 50, columns, 0.3)
    found = [
        statistics.frechet_distance(x[np.arange(24) % 6 != i], reference)
        for i in range(6)
    ]
    expected = np.sqrt(5 / 6 * np.sum((found - np.mean(found)) ** 2))
    error = statistics.frechet_error(x, statistics.Moments.of(reference), groups=6)
    assert error == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: statistics.frechet_distance(x[:, :, None], x), r"a .*\[N, D\]"),
        (lambda x: statistics.frechet_distance(x, x[:1]), r"b .*at least 2 rows"),
        (lambda x: statistics.frechet_distance(x, x[:, :2]), r"a and b .*columns"),
        (lambda x: statistics.frechet_distance(x, np.nan * x), r"b .*finite, got 300"),
        (lambda x: statistics.frechet_distance(x, x + 1j), r"b .*real numbers"),
        (
            lambda x: statistics.frechet_distance(statistics.Moments.of(x), x[:, :2]),
            r"a and b .*columns, got 5 and 2",
        ),
        (lambda x: statistics.Moments.of(x[:1]).covariance, r"at least 2 rows, got 1"),
        (lambda x: statistics.Moments.of(x).update(x[:, :2]), r"5 features, got 2"),
        (lambda x: statistics.moments_of([]), r"chunks .*at least one"),
        (
            lambda x: statistics.frechet_error(x[:5], statistics.Moments.of(x)),
            r"groups .*got 10 and 5",
        ),
        (
            lambda x: statistics.frechet_error(x[:, :2], statistics.Moments.of(x)),
            r"columns, got 2 and 5",
        ),
    ],
)
def test_bad_input_is_named(call, expected):
    with pytest.raises(ValueError, match=expected):
        call(features(0))
