"""What the pictures of a bench are drawn from."""

import numpy as np
import pytest

from distilljax.bench.pictures import front, spread


def test_the_front_is_what_nothing_beats():
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 6.0), (2.0, 2.0), (4.0, 1.0)]
    assert front(points) == [(1.0, 5.0), (2.0, 2.0), (3.0, 1.0)]


def test_names_are_moved_apart_and_no_further():
    heights = [0.9, 0.5, 0.52, 0.51, 0.1]
    found = spread(heights, 0.1)
    np.testing.assert_allclose(found, [0.9, 0.41, 0.61, 0.51, 0.1], atol=1e-9)
    assert spread([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_names_stay_beside_the_axis(at):
    found = spread([at] * 40, 0.1)
    np.testing.assert_allclose(sorted(found), np.linspace(0, 1, 40), atol=1e-9)
    assert min(spread([at] * 3, 0.1)) >= 0.0
    assert max(spread([at] * 3, 0.1)) <= 1.0
