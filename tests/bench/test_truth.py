"""Numbers that have a truth."""

import numpy as np
import pytest

from distilljax import paths
from distilljax.bench.mixtures import Units, draw_mixture
from distilljax.bench.truth import Truth


@pytest.fixture(scope="module")
def truth():
    oracle = draw_mixture()
    units = Units.of(oracle)
    return Truth(oracle, units.inner(oracle), units, paths.linear(), 1024)


def test_exact_samples_stand_at_the_floor(truth):
    found = truth.statistics(truth.exact(0))
    # Two exact sets: (1/n + 1/m) E|x - x'|, E|x - x'| about 1.6 here.
    assert found["energy_distance"] == pytest.approx(1.6 * 2 / 1024, rel=0.7)
    assert found["weight_error"] < 0.05
    assert found["modes"] == 1.0
    assert abs(found["nll_excess"]) < 0.15
    assert min(found["precision"], found["recall"], found["coverage"]) > 0.9
    assert not np.array_equal(truth.exact(0), truth.exact(1))


def test_a_missing_mode_shows(truth):
    x = truth.exact(1)
    means, weights = np.asarray(truth.oracle.means), np.asarray(truth.oracle.weights)
    which = np.linalg.norm(x[:, None] - means, axis=-1).argmin(1)
    lost = int(weights.argmax())
    x = x[which != lost]
    found = truth.statistics(x)
    assert found["modes"] == pytest.approx(7 / 8)
    assert found["mode_weights"][lost] < 0.02
    assert found["weight_error"] == pytest.approx(weights[lost], abs=0.05)
    assert found["energy_distance"] > 10 * 2 / 1024
    assert found["recall"] < 0.95


def test_samples_off_the_modes_are_unlikely(truth):
    x = truth.exact(2) + 0.3 * np.random.default_rng(0).normal(size=(1024, 2))
    found = truth.statistics(x)
    assert found["nll_excess"] > 0.3
    assert found["precision"] < 0.9


def test_the_flow_error_is_that_of_the_flow(truth):
    eps = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    x = truth.units.outer(truth.flow(eps))
    assert truth.paired(x, eps)["flow_error"] == pytest.approx(0.0, abs=1e-6)
    off = truth.paired(x + np.float32(0.25), eps)["flow_error"]
    assert off == pytest.approx(0.25, rel=1e-4)
    # The exact flow of noise gives samples of the mixture.
    density = np.asarray(truth.oracle.log_density(x))
    assert density.mean() == pytest.approx(-truth.entropy, abs=0.5)
