"""Points of the plane whose law is known: mixtures and curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from distilljax.data.sources import ArraySource, arrays
from distilljax.runtime import words
from distilljax.runtime.errors import unknown


class Mixture(NamedTuple):
    """A Gaussian mixture with one standard deviation.

    Attributes:
      means: ``[K, d]``.
      std: of every component and axis.
      weights: ``[K]``, sum 1.
    """

    means: np.ndarray
    std: float
    weights: np.ndarray

    def sample(self, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact samples: ``x0 [size, d]`` float32 and component ``[size]`` int32."""
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.means), size, p=self.weights)
        noise = rng.standard_normal((size, self.means.shape[1]))
        x0 = self.means[component] + self.std * noise
        return x0.astype(np.float32), component.astype(np.int32)


def _ring(components: int, radius: float, seed: int) -> np.ndarray:
    angle = 2.0 * np.pi * np.arange(components) / components
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)


def _grid(components: int, radius: float, seed: int) -> np.ndarray:
    side = math.isqrt(components)
    if side * side != components:
        raise ValueError(
            f"components of a grid must be a square number, got {components}; the "
            f"nearest are {side**2} and {(side + 1) ** 2}"
        )
    axis = np.linspace(-radius, radius, side) if side > 1 else np.zeros(1)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def _random(components: int, radius: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng((seed, components))
    return rng.uniform(-radius, radius, (components, 2))


LAYOUTS = {"ring": _ring, "grid": _grid, "random": _random}


def planar_mixture(
    layout: str = "ring",
    *,
    components: int = 8,
    radius: float = 1.5,
    std: float = 0.1,
    seed: int = 0,
) -> Mixture:
    """A mixture of equal Gaussians in the plane.

    Args:
      layout: ``ring`` (on a circle), ``grid`` (a square number of them) or ``random``
        (means uniform in the square, unequal weights).
      components: number of Gaussians, at least 1.
      radius: of the circle, or half the side of the square.
      std: standard deviation of each, positive.
      seed: of the random layout.

    Raises:
      ValueError: on an unknown layout or a value out of its range.
    """
    if layout not in LAYOUTS:
        raise ValueError(unknown("layout", layout, LAYOUTS))
    if components < 1 or std <= 0.0:
        raise ValueError(
            f"components must be at least 1 and std positive, got {components} and "
            f"{std}"
        )
    means = LAYOUTS[layout](components, radius, seed)
    weights = np.full(components, 1.0 / components)
    if layout == "random":
        weights = np.random.default_rng((seed, components, 1)).uniform(
            0.5, 1.5, components
        )
        weights = weights / weights.sum()
    return Mixture(means, std, weights)


@words.source
def mixture(
    layout: str = "ring",
    *,
    size: int = 65536,
    components: int = 8,
    radius: float = 1.5,
    std: float = 0.1,
    seed: int = 0,
) -> ArraySource:
    """Exact samples of a `planar_mixture`; ``cond`` is the component.

    Args:
      layout: see `planar_mixture`.
      size: number of samples.
      components: see `planar_mixture`.
      radius: see `planar_mixture`.
      std: see `planar_mixture`.
      seed: of the samples and of the random layout.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    law = planar_mixture(
        layout, components=components, radius=radius, std=std, seed=seed
    )
    x0, component = law.sample(size, seed)
    return arrays(x0, component, num_classes=components, name=f"mixture_{layout}")


def _spiral(rng: np.random.Generator, arm: np.ndarray, arms: int) -> np.ndarray:
    u = np.sqrt(rng.uniform(size=len(arm)))
    angle = 3.0 * np.pi * u + 2.0 * np.pi * arm / arms
    return u[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)


def _swiss_roll(rng: np.random.Generator, arm: np.ndarray, arms: int) -> np.ndarray:
    angle = 1.5 * np.pi * (1.0 + 2.0 * rng.uniform(size=len(arm)))
    return (angle / (4.5 * np.pi))[:, None] * np.stack(
        [np.cos(angle), np.sin(angle)], -1
    )


def _moons(rng: np.random.Generator, arm: np.ndarray, arms: int) -> np.ndarray:
    angle = np.pi * rng.uniform(size=len(arm))
    sign = np.where(arm == 0, 1.0, -1.0)
    x = sign * np.cos(angle) - 0.5 * sign
    y = sign * np.sin(angle) - 0.25 * sign
    return np.stack([x, y], -1) / 1.5


def _circles(rng: np.random.Generator, arm: np.ndarray, arms: int) -> np.ndarray:
    angle = 2.0 * np.pi * rng.uniform(size=len(arm))
    radius = (arm + 1.0) / arms
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)


def _checkerboard(rng: np.random.Generator, arm: np.ndarray, arms: int) -> np.ndarray:
    column = rng.integers(0, 4, len(arm))
    row = 2 * rng.integers(0, 2, len(arm)) + column % 2
    corner = np.stack([column, row], -1) + rng.uniform(size=(len(arm), 2))
    return corner / 2.0 - 1.0


# Curve -> points in [-1, 1]^2 of an arm each, and the number of arms.
CURVES: dict[str, tuple[Callable[..., np.ndarray], int]] = {
    "checkerboard": (_checkerboard, 1),
    "circles": (_circles, 2),
    "moons": (_moons, 2),
    "pinwheel": (_spiral, 5),
    "spiral": (_spiral, 2),
    "swiss_roll": (_swiss_roll, 1),
}


@words.source
def curves(
    curve: str = "spiral",
    *,
    size: int = 65536,
    radius: float = 1.5,
    std: float = 0.02,
    seed: int = 0,
) -> ArraySource:
    """Samples along curves of the plane; ``cond`` is the arm, where there are several.

    Args:
      curve: ``spiral`` (two arms), ``pinwheel`` (five), ``swiss_roll``, ``moons`` (two
        half circles), ``circles`` (two around one centre) or ``checkerboard``.
      size: number of samples.
      radius: of the disc, or half the side of the square, that holds the curve.
      std: of the Gaussian around it, at least 0.
      seed: of the samples.

    Raises:
      ValueError: on an unknown curve or a value out of its range.
    """
    if curve not in CURVES:
        raise ValueError(unknown("curve", curve, CURVES))
    for name, value, low in (("size", size, 1), ("std", std, 0.0)):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if radius <= 0.0:
        raise ValueError(f"radius must be positive, got {radius}")
    draw, arms = CURVES[curve]
    rng = np.random.default_rng((seed, size))
    arm = rng.integers(0, arms, size)
    x0 = radius * draw(rng, arm, arms) + std * rng.standard_normal((size, 2))
    cond, classes = (arm, arms) if arms > 1 else (None, None)
    x0 = x0.astype(np.float32)
    return arrays(x0, cond, num_classes=classes, name=f"curves_{curve}")
