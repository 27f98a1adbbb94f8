"""PSNR against its definition."""

import numpy as np
import pytest

from distilljax.evaluation import psnr


def images(seed, n=3):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, 4, 4, 1))


def test_errors_of_known_size():
    sharp = images(0)
    # A tenth of the range of two is 20 dB.
    assert psnr(sharp + 0.2, sharp) == pytest.approx(20.0, abs=1e-5)
    offsets = np.asarray([0.2, 0.02, 0.2]).reshape(3, 1, 1, 1)
    assert psnr(sharp + offsets, sharp) == pytest.approx(80.0 / 3, abs=1e-5)
    assert psnr(sharp, sharp) == np.inf


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="one image for each of the 3 of sharp, got 2"):
        psnr(images(0, 2), images(1))
