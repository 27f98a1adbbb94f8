"""What comes in is checked, and the error says argument, wish, reality and mend."""

import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.evaluation import inputs

IMAGES = np.linspace(-1, 1, 2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (IMAGES[0], r"x must be images .*\[N, H, W, C\], got shape \(4, 4, 1\)"),
        (IMAGES[:0], r"x must hold at least one image, got shape \(0, 4, 4, 1\)"),
        (IMAGES * 1.5, r"x must lie in \[-1, 1\], got values from -1.5 to 1.5; clip"),
        (IMAGES + np.inf, r"x must be finite, got 32 NaN or infinite of 32 values"),
        (IMAGES.astype("U"), r"x must be an array of real numbers, got dtype <U"),
        (IMAGES[:, :3], r"x must have images of shape \(4, 4, 1\) .*got \(3, 4, 1\)"),
    ],
)
def test_bad_images(value, expected):
    with pytest.raises(ValueError, match=expected):
        inputs.check_images("x", value, (4, 4, 1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_images_of_any_float_type(dtype):
    images = inputs.check_images("x", jnp.asarray(IMAGES, dtype))
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, IMAGES, atol=4e-3)


def test_images_may_overshoot_by_rounding_only():
    inputs.check_images("x", IMAGES * np.float32(1 + 2e-7))
    with pytest.raises(ValueError, match="x must lie"):
        inputs.check_images("x", IMAGES * 1.00001)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0.0, 1.0, 2.0], r"y must be integers, got dtype float64"),
        ([[0], [1], [2]], r"y must have shape \(3,\), .*got shape \(3, 1\)"),
        ([0, 1], r"y must have shape \(3,\)"),
        ([0, 1, 10], r"y must be in 0..9, got values from 0 to 10"),
        ([-1, 1, 2], r"y must be in 0..9, got values from -1 to 2"),
    ],
)
def test_bad_labels(value, expected):
    with pytest.raises(ValueError, match=expected):
        inputs.check_labels("y", np.asarray(value), 3, 10)


def test_labels_come_back_as_int32():
    labels = inputs.check_labels("y", np.array([3, 0], np.uint8), 2)
    assert labels.dtype == np.int32
    assert labels.tolist() == [3, 0]
    with pytest.raises(ValueError, match="y must be at least 0"):
        inputs.check_labels("y", np.array([3, -1]), 2)
