"""Scores and sliced Wasserstein distances against scipy and closed forms."""

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats

from distilljax.evaluation import statistics


def features(seed, rows=60, columns=5, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, (rows, columns))


def test_inception_score_matches_scipys_entropies():
    logits = 3 * features(0, 53, 7)
    edges = [i * 53 // 4 for i in range(5)]
    scores = []
    for a, b in zip(edges[:-1], edges[1:]):
        p = scipy.special.softmax(logits[a:b], axis=1)
        scores.append(np.exp(np.mean([scipy.stats.entropy(r, p.mean(0)) for r in p])))
    found = statistics.inception_score(logits, splits=4)
    assert found.value == pytest.approx(np.mean(scores), rel=1e-10)
    assert found.error == pytest.approx(np.std(scores, ddof=1) / 2, rel=1e-10)


def test_inception_score_of_sure_and_unsure_classes():
    sure = 1e4 * np.eye(5)[np.arange(50) % 5]
    assert statistics.inception_score(sure, splits=2).value == pytest.approx(5)
    unsure = statistics.inception_score(0 * sure, splits=1)
    assert unsure == pytest.approx((1.0, 0.0), abs=1e-12)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_vendi_score_is_the_entropy_of_the_kernel(shape):
    x = features(0, *shape, 0.5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    kernel = unit @ unit.T / len(x)
    expected = np.exp(-np.trace(kernel @ _log(kernel)))
    assert statistics.vendi_score(x) == pytest.approx(expected, rel=1e-8)
    squared = 1 / np.sum(kernel**2)
    assert statistics.vendi_score(x, 2.0) == pytest.approx(squared, rel=1e-10)
    largest = 1 / np.linalg.norm(kernel, 2)
    assert statistics.vendi_score(x, np.inf) == pytest.approx(largest, rel=1e-10)
    assert statistics.vendi_score(x, 0.0) == pytest.approx(min(shape))
    near = statistics.vendi_score(x, 1 + 1e-7)
    assert near == pytest.approx(expected, rel=1e-5)


def _log(kernel):
    values, vectors = scipy.linalg.eigh(kernel)
    return (vectors * np.log(values.clip(1e-300))) @ vectors.T


def test_vendi_score_counts_kinds():
    kinds = np.eye(4).repeat(10, axis=0)
    for q in (0.5, 1.0, 2.0, np.inf):
        assert statistics.vendi_score(kinds, q) == pytest.approx(4)
    assert statistics.vendi_score(np.ones((9, 3))) == pytest.approx(1)


@pytest.mark.parametrize("counts", [(40, 40), (40, 25), (40, 39)])
def test_sliced_wasserstein_matches_scipy_on_every_line(counts):
    x, y = features(0, counts[0], 3), 1.4 * features(1, counts[1], 3, 0.5)
    lines = np.random.default_rng(7).normal(size=(20, 3))
    lines /= np.linalg.norm(lines, axis=1, keepdims=True)
    expected = [scipy.stats.wasserstein_distance(x @ u, y @ u) for u in lines]
    found = statistics.sliced_wasserstein(x, y, projections=20, order=1, seed=7)
    assert found.value == pytest.approx(np.mean(expected), rel=1e-10)
    error = np.std(expected, ddof=1) / np.sqrt(20)
    assert found.error == pytest.approx(error, rel=1e-10)


def test_sliced_wasserstein_of_a_shift():
    """Moved by c, every line sees the part of c along it: c^2 / D in the mean."""
    x = features(0, 30, 4)
    found = statistics.sliced_wasserstein(x, x + 2.0, projections=4000)
    assert found.value == pytest.approx(2.0, abs=4 * found.error)
    assert found.error < 0.05
    assert statistics.sliced_wasserstein(x, x[::-1]) == (0.0, 0.0)
    one = statistics.sliced_wasserstein(x[:, :1], x[:, :1] + 2.0, projections=1)
    assert one.value == pytest.approx(2.0)


def test_sliced_wasserstein_does_not_depend_on_the_chunk(monkeypatch):
    from distilljax.evaluation.statistics import scores

    x, y = features(0, 30, 4), features(1, 20, 4)
    whole = statistics.sliced_wasserstein(x, y, projections=9)
    monkeypatch.setattr(scores, "_CHUNK_ELEMENTS", 200)
    parts = statistics.sliced_wasserstein(x, y, projections=9)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: statistics.inception_score(x, splits=61), r"splits .*60 samples"),
        (lambda x: statistics.vendi_score(x, -1.0), r"q must be at least 0, got -1"),
        (lambda x: statistics.vendi_score(0 * x), r"features .*norm 0, got 60"),
        (lambda x: statistics.sliced_wasserstein(x, x, order=0.5), r"order .*0.5"),
        (lambda x: statistics.sliced_wasserstein(x, x, projections=0), r"projections"),
    ],
)
def test_bad_input_is_named(call, expected):
    with pytest.raises(ValueError, match=expected):
        call(features(0))
