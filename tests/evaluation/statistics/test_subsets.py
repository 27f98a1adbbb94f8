"""The kernel inception distance against scikit-learn's kernel."""

import numpy as np
import pytest

from distilljax.evaluation import statistics


def features(seed, rows=60, columns=5, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, (rows, columns))


def test_kid_of_whole_sets_matches_scikit_learn():
    from sklearn.metrics.pairwise import polynomial_kernel

    x, y = features(0, 40, 6), features(1, 40, 6, 0.3)
    off = 1 - np.eye(40)
    xx, yy, xy = (
        polynomial_kernel(a, b, degree=3, gamma=1 / 6, coef0=1)
        for a, b in ((x, x), (y, y), (x, y))
    )
    expected = (xx * off).sum() / 1560 + (yy * off).sum() / 1560 - 2 * xy.mean()
    found = statistics.kid(x, y, subsets=3, subset_size=40)
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_kid_of_subsets_is_unbiased_and_says_its_spread():
    x, y = features(0, 400, 6), features(1, 300, 6, 0.3)
    whole = statistics.kid(x[:300], y, subsets=1, subset_size=300).value
    found = statistics.kid(x, y, subsets=200, subset_size=50)
    assert found.error == pytest.approx(found.std / np.sqrt(200))
    assert abs(found.value - whole) < 5 * found.error
    assert found == statistics.kid(x, y, subsets=200, subset_size=50)
    assert found != statistics.kid(x, y, subsets=200, subset_size=50, seed=1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, r"subset_size from 2 to 50.*got 100 and 1000.*subset_size=50"),
        ({"subsets": 0, "subset_size": 50}, r"subsets must be at least 1"),
        ({"degree": 0}, r"degree must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(options, expected):
    x = features(0)
    with pytest.raises(ValueError, match=expected):
        statistics.kid(x, x[:50], **options)
