"""The check finds copies, blurred copies and few copies, and acquits fresh data."""

import numpy as np
import pytest

from distilljax.evaluation.memorisation import (
    _largest_by_chance,
    memorisation_check,
)

RNG = np.random.default_rng(0)
TRAINING = RNG.normal(size=(1500, 6))
FRESH = RNG.normal(size=(1500, 6))


def test_fresh_samples_of_the_same_law_are_acquitted():
    found = memorisation_check(FRESH, TRAINING)
    assert not found.copies
    assert found.share <= found.limit
    assert found.expected == pytest.approx(2 / 1500)
    assert 0.9 < found.spread < 1.1
    assert found.singled_out < 0.01
    assert str(found).startswith("no sign of copies")


def test_copies_are_found():
    found = memorisation_check(TRAINING[::-1], TRAINING)
    assert found.copies
    assert found.share == 1.0
    assert found.spread < 0.05
    assert str(found).startswith("copies of training data: 100.00 %")


def test_a_few_copies_among_fresh_samples_are_found():
    mixed = np.concatenate([FRESH[:1470], TRAINING[:30]])
    found = memorisation_check(mixed, TRAINING)
    assert found.copies
    assert found.share == pytest.approx(0.02, abs=0.004)
    assert found.spread > 0.9
    assert found.singled_out == pytest.approx(0.02, abs=0.004)


def test_noisy_copies_beyond_the_threshold_are_found_by_their_spread():
    exact = memorisation_check(FRESH, TRAINING)
    directions = RNG.normal(size=TRAINING.shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    found = memorisation_check(
        TRAINING + 1.2 * exact.threshold * directions, TRAINING, quantile=1e-3
    )
    assert found.spread < 0.6
    assert found.copies


def test_halves_of_the_digits_do_not_copy_each_other(digits):
    x = digits[0].reshape(-1, 64)
    order = np.random.default_rng(1).permutation(len(x))
    assert not memorisation_check(x[order[:900]], x[order[900:]]).copies
    assert memorisation_check(x[:900], x).copies


def test_repeated_training_rows_do_not_hide_copies():
    training = np.concatenate([TRAINING, TRAINING[:20]])
    found = memorisation_check(FRESH, training)
    assert found.threshold == 0
    assert found.expected == pytest.approx(40 / 1520)
    assert not found.copies
    assert memorisation_check(TRAINING, training).copies


def test_limit_is_a_quantile_of_the_negative_binomial():
    from scipy.stats import nbinom

    for seen, among, drawn in ((2, 1797, 1797), (2, 1797, 5391), (0, 10, 500)):
        expected = nbinom.ppf(0.999, seen + 1, among / (among + drawn))
        assert _largest_by_chance(seen, among, drawn) == min(expected, drawn)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"quantile .*between 0 and 1, got 1.5"):
        memorisation_check(FRESH, TRAINING, quantile=1.5)
    with pytest.raises(ValueError, match=r"training .*at least 4 rows"):
        memorisation_check(FRESH, TRAINING[:3])
    with pytest.raises(ValueError, match=r"samples and training .*columns"):
        memorisation_check(FRESH[:, :2], TRAINING)
