"""Labels, curves, and images by class, as panels show them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from distilljax.evaluation.panels import draw_classes, first_of_each, smooth, spread


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


def test_the_first_images_of_each_class_stand_together():
    labels = np.array([7, 2, 2, 7, 2, 7])
    np.testing.assert_array_equal(first_of_each(labels, 2), [1, 2, 0, 3])
    np.testing.assert_array_equal(first_of_each(labels, 3, most=1), [1, 2, 4])
    assert first_of_each(labels, 4) is None
    assert first_of_each([], 1) is None


def test_a_class_is_a_row_beside_its_name():
    axes = Figure().add_subplot()
    x = np.repeat(np.array([-1.0, 0.0, 1.0]), 2)[:, None, None, None]
    draw_classes(axes, np.broadcast_to(x, (6, 4, 4, 1)), ["cat", "dog", "owl"])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog", "owl"]
    shown = np.asarray(axes.images[0].get_array())
    middle = shown.shape[1] // 4
    found = [shown[round(at), middle, 0] for at in axes.get_yticks()]
    assert found == [0, 128, 255]
