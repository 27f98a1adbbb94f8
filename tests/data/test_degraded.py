"""Pairs for restoration: the means, the enlargement, the parts."""

import numpy as np
import pytest

from distilljax import data
from distilljax.data.degraded import block_means, repeated


def test_block_means_are_means_and_repetition_is_their_right_inverse():
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 2))
    small = block_means(x, 2)
    assert small.shape == (3, 2, 3, 2)
    np.testing.assert_allclose(small[1, 0, 2], x[1, :2, 4:].mean((0, 1)))
    np.testing.assert_allclose(block_means(repeated(small, 2), 2), small)
    np.testing.assert_allclose(block_means(x, 1), x)
    with pytest.raises(ValueError, match="must divide height and width 4 x 6, got 4"):
        block_means(x, 4)


def test_pairs_belong_together_and_parts_do_not_overlap():
    whole, train, test = (data.degraded_digits(p) for p in ("all", "train", "test"))
    assert len(train) + len(test) == len(whole) == 1797
    assert len(test) == 449
    sharp = data.digits()
    for source, rows in ((test, slice(3, None, 4)), (whole, slice(None))):
        found = source.take(np.arange(len(source)))
        assert found["cond"].shape[1:] == (4, 4, 1)
        np.testing.assert_array_equal(found["x0"], sharp.columns["x0"][rows])
        np.testing.assert_array_equal(found["label"], sharp.columns["cond"][rows])
        np.testing.assert_allclose(
            found["cond"], block_means(found["x0"], 2), atol=1e-6
        )
        np.testing.assert_array_equal(found["degraded"], repeated(found["cond"], 2))
    assert train.num_classes is None
    kept = {x.tobytes() for x in train.columns["x0"]}
    held = [x.tobytes() in kept for x in test.columns["x0"]]
    assert not any(held)


def test_noise_is_added_to_the_small_image_before_it_is_enlarged():
    plain = data.degraded_digits("test").columns
    noisy = data.degraded_digits("test", noise=0.1, seed=1).columns
    difference = noisy["cond"] - plain["cond"]
    assert np.std(difference) == pytest.approx(0.1, rel=0.03)
    np.testing.assert_array_equal(noisy["degraded"], repeated(noisy["cond"], 2))
    np.testing.assert_array_equal(noisy["x0"], plain["x0"])
    other = data.degraded_digits("test", noise=0.1, seed=2).columns
    assert not np.array_equal(other["cond"], noisy["cond"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "tset"}, "unknown part 'tset'.*'test'"),
        ({"factor": 3}, "factor must divide .* 8 x 8, got 3"),
        ({"noise": -0.1}, "noise must be at least 0, got -0.1"),
    ],
)
def test_what_makes_no_pairs_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.degraded_digits(**options)
