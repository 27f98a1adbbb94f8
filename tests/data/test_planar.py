"""Curves of the plane lie where they should."""

import numpy as np
import pytest

from distilljax import data
from distilljax.data.planar import CURVES


def on_curve(curve, x, arm):
    """Distance of points of a curve without noise from its equation; radius 1."""
    r, angle = np.linalg.norm(x, axis=-1), np.arctan2(x[:, 1], x[:, 0])
    if curve in ("spiral", "pinwheel"):
        arms = CURVES[curve][1]
        turned = 3.0 * np.pi * r + 2.0 * np.pi * arm / arms
        return np.abs(np.exp(1j * turned) - np.exp(1j * angle))
    if curve == "swiss_roll":
        return np.abs(np.exp(1j * 4.5 * np.pi * r) - np.exp(1j * angle))
    if curve == "circles":
        return np.abs(r - (arm + 1) / 2)
    if curve == "moons":
        sign = np.where(arm == 0, 1.0, -1.0)[:, None]
        centre = sign * np.array([-0.5, -0.25])
        half = sign[:, 0] * (1.5 * x - centre)[:, 1]
        off = np.abs(np.linalg.norm(1.5 * x - centre, axis=-1) - 1.0)
        return np.where(half > -1e-5, off, np.inf)
    squares = np.floor(2.0 * (x + 1.0) - 1e-7).astype(int)
    return np.where(squares.sum(-1) % 2 == 0, 0.0, np.inf)


@pytest.mark.parametrize("curve", CURVES)
def test_points_lie_on_their_curve(curve):
    source = data.curves(curve, size=4000, radius=1.0, std=0.0, seed=1)
    x0 = source.columns["x0"]
    arms = CURVES[curve][1]
    arm = source.columns.get("cond", np.zeros(4000, int))
    assert source.num_classes == (arms if arms > 1 else None)
    assert set(arm) == set(range(arms))
    assert on_curve(curve, x0.astype(np.float64), arm).max() < 1e-5
    assert np.abs(x0).max() <= 1.0 + 1e-6
    assert np.abs(x0).max() > 0.9


def test_size_seed_radius_and_noise_count():
    plain = data.curves("moons", size=500, std=0.0)
    assert plain == data.curves("moons", size=500, std=0.0)
    assert plain != data.curves("moons", size=500, std=0.0, seed=1)
    wide = data.curves("moons", size=500, std=0.0, radius=3.0)
    np.testing.assert_allclose(wide.columns["x0"], 2.0 * plain.columns["x0"], rtol=1e-5)
    noisy = data.curves("moons", size=20000, std=0.1)
    off = noisy.columns["x0"] - data.curves("moons", size=20000, std=0.0).columns["x0"]
    np.testing.assert_allclose(off.std(0), 0.1, rtol=0.03)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"curve": "spirals"}, "unknown curve 'spirals'. Did you mean 'spiral'"),
        ({"size": 0}, "size must be at least 1"),
        ({"std": -1.0}, "std must be at least 0"),
        ({"radius": 0.0}, "radius must be positive"),
    ],
)
def test_curves_refuse(kwargs, message):
    with pytest.raises(ValueError, match=message):
        data.curves(**kwargs)
