"""The digits as a suite."""

import jax
import numpy as np
import pytest

from distilljax.bench import make_suite
from distilljax.bench.training import cycles_for, train
from distilljax.methods import CATALOGUE


@pytest.fixture(scope="module")
def suite():
    return make_suite("digits", quick=True)


def test_every_method_has_an_entry_or_a_reason(suite):
    assert set(suite.entries) | set(suite.missing) == set(CATALOGUE)
    assert suite.judge.count == 1797


@pytest.mark.parametrize("name", ["scm", "dmd2", "gdmd", "ctm"])
def test_a_card_runs_under_a_budget(suite, name):
    entry = suite.entries[name]
    few = cycles_for(suite, name, entry, 300_000, 1)
    many = cycles_for(suite, name, entry, 600_000, 1)
    assert many == pytest.approx(2 * few, abs=2)


def test_a_student_is_trained_and_judged(suite):
    start = suite.backbone.init(jax.random.key(0))
    found = train(
        suite, "scm", suite.entries["scm"], start, budget=8_000, seeds=(0,), probes=1
    )
    assert found.spent.cycles >= 2
    ((_, (value,)),) = found.history
    assert np.isfinite(value)
    numbers = suite.judge.statistics(suite.floor(start, 0))
    for name in ("frechet", "accuracy", "recall", "coverage"):
        assert np.isfinite(numbers[name])
