"""Sample grids pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from distilljax.evaluation.plots import image_grid, save_png


def test_tiles_stand_row_by_row_without_interpolation():
    images = np.array([-1.0, 1.0, 0.0]).reshape(3, 1, 1, 1) * np.ones((3, 2, 3, 1))
    grid = image_grid(images, columns=2, scale=4, border=0, gap=1)
    assert grid.shape == (2 * 8 + 1, 2 * 12 + 1, 3)
    assert grid.dtype == np.uint8
    assert (grid[:8, :12] == 0).all()
    assert (grid[:8, 13:] == 255).all()
    assert (grid[9:, :12] == 128).all()
    assert (grid[8] == grid[8, 0]).all()
    assert (grid[9:, 13:] == grid[8, 0]).all()


def test_every_pixel_becomes_a_square_inside_a_black_border():
    images = np.random.default_rng(0).uniform(-1, 1, (1, 3, 2, 3))
    grid = image_grid(images, columns=1, scale=2)
    assert grid.shape == (10, 8, 3)
    inner = grid[2:-2, 2:-2]
    expected = np.rint(images[0] * 127.5 + 127.5).astype(np.uint8)
    for row in range(2):
        for column in range(2):
            np.testing.assert_array_equal(inner[row::2, column::2], expected)
    assert grid.sum() == inner.sum()


def test_overshoot_is_clipped_and_nan_is_magenta():
    images = np.array([5.0, -5.0, np.nan, np.inf]).reshape(1, 2, 2, 1)
    grid = image_grid(images, columns=1, border=0)
    assert grid.tolist() == [
        [[255, 255, 255], [0, 0, 0]],
        [[255, 0, 255], [255, 0, 255]],
    ]


@pytest.mark.parametrize(
    ("images", "arguments", "expected"),
    [
        (np.zeros((2, 8, 8)), {"columns": 1}, r"images .*\(2, 8, 8\)"),
        (np.zeros((0, 8, 8, 1)), {"columns": 1}, r"images .*filled"),
        (np.zeros((2, 8, 8, 4)), {"columns": 1}, r"images .*1 or 3 channels"),
        (np.zeros((2, 8, 8, 1)), {"columns": 0}, r"columns=0"),
        (np.zeros((2, 8, 8, 1)), {"columns": 1, "scale": 0}, r"scale=0"),
    ],
)
def test_bad_grids_are_named(images, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        image_grid(images, **arguments)


def test_png_holds_the_grid(tmp_path):
    grid = image_grid(np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 1)), 3, 2)
    path = save_png(tmp_path / "samples" / "step_10.png", grid)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), grid)
    save_png(path, grid[..., 0])
    assert Image.open(path).mode == "L"
    with pytest.raises(ValueError, match=r"grid must be uint8 .*got float64"):
        save_png(path, grid / 255.0)
