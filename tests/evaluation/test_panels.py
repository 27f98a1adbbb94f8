"""Labels are moved apart as little as possible; curves are smoothed around gaps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distilljax.evaluation.panels import smooth, spread


def test_spread_leaves_labels_alone_that_have_room():
    np.testing.assert_array_equal(spread([30.0, 0.0, 10.0], 10), [30.0, 0.0, 10.0])


def test_spread_moves_a_crowd_apart_around_its_middle():
    np.testing.assert_allclose(spread([5.0, 5.0, 5.0], 2), [3.0, 5.0, 7.0])
    np.testing.assert_allclose(spread([0.0, 1.0, 50.0], 4), [-1.5, 2.5, 50.0])


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.floats(0.1, 50))
def test_spread_keeps_distance_order_and_mean(wished, gap):
    found = spread(wished, gap)
    order = np.argsort(wished, kind="stable")
    assert (np.diff(found[order]) >= gap - 1e-6).all()
    np.testing.assert_allclose(found.mean(), np.mean(wished), atol=1e-6)


def test_smooth_is_a_centred_mean_that_skips_nan():
    np.testing.assert_allclose(
        smooth([1.0, 4.0, 1.0, 4.0, 1.0], 3), [2.5, 2, 3, 2, 2.5]
    )
    np.testing.assert_allclose(smooth([1.0, np.nan, 3.0], 3), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(smooth([1.0, 7.0, 2.0], 1), [1.0, 7.0, 2.0])
    assert np.isnan(smooth([np.nan, np.nan], 3)).all()
