"""Captions: their size, and that long ones are cut."""

import numpy as np
import pytest

from distilljax.evaluation import captions, image_grid


def test_equal_texts_are_drawn_equally_and_stay_inside():
    strips = captions.captions(["cat", "a very long name of a class", "cat", ""], 40)
    assert strips.shape == (4, captions.HEIGHT, 40, 3)
    np.testing.assert_array_equal(strips[0], strips[2])
    assert (strips[0] != strips[3]).any()
    # Ink keeps away from the right edge.
    assert (strips[1][:, -1] == strips[3][:, -1]).all()
    assert captions.captions(["name"], 3).shape == (1, captions.HEIGHT, 3, 3)


def test_a_grid_has_captions_above_its_images():
    x = np.linspace(-1, 1, 3 * 4 * 4 * 3).reshape(3, 4, 4, 3)
    plain = image_grid(x, 3, 8)
    grid = image_grid(x, 3, 8, captions=["cat", "dog", "cat"])
    assert grid.shape == (plain.shape[0] + captions.HEIGHT, *plain.shape[1:])
    np.testing.assert_array_equal(grid[captions.HEIGHT :], plain)
    with pytest.raises(ValueError, match="captions must be 3"):
        image_grid(x, 3, captions=["cat"])
