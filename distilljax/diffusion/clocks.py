"""Laws of times and grids that differ by the kind of path, as the releases have them.

A release draws the times of an EDM network from Karras's table, those of a network of
discrete time as timesteps. `ByPath` holds one law, or one grid, for each family of
paths, so that the default of a method is that of its release on every network.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from distilljax.diffusion.paths import Path
from distilljax.diffusion.times import EvenGrid, check_times, checked_steps, inside
from distilljax.runtime import words

Array = jax.Array


@words.call
@dataclasses.dataclass(frozen=True)
class ByPath:
    """A law or a grid for each family of paths, see `paths.Path.family`.

    The releases of one method differ by the network that they distil: DMD2 draws
    indices of Karras's table for EDM and timesteps for Stable Diffusion. A default that
    depends on the path is such a value, and is resolved here alone.

    Attributes:
      other: for families that are not named.
      edm: for EDM paths; None for ``other``.
      vp: for variance-preserving paths; None for ``other``.
    """

    other: Any
    edm: Any = None
    vp: Any = None

    def of(self, path: Path) -> Any:
        """The value for a path."""
        own = {"edm": self.edm, "vp": self.vp}.get(path.family)
        return self.other if own is None else own

    def __call__(self, *args: Any) -> Any:
        """Calls the law or grid of the path, which is the last argument of both."""
        return self.of(args[-1])(*args)


def _place_ratio(place: Any, low: float, high: float, rho: float) -> Any:
    """Karras's noise level at a place from 0 (``low``) to 1 (``high``)."""
    a, b = low ** (1 / rho), high ** (1 / rho)
    return (a + place * (b - a)) ** rho


def _index_range(low: float, high: float, points: int) -> tuple[int, int]:
    """First index and the one behind the last of a share of a table."""
    first = int(low * points + 1e-6)
    return first, min(int(high * points + 1e-6), points - 1) + 1


def _check_share(low: float, high: float) -> None:
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(
            f"low and high must be shares of a table with low < high, got {low}, {high}"
        )


@words.call
@dataclasses.dataclass(frozen=True)
class KarrasUniform:
    """Uniform over the places of Karras's ramp of ``sigma/alpha``, on any path.

    Place 0 is ``sigma_min`` and place 1 ``sigma_max``, ``(a^(1/rho) + u (b^(1/rho) -
    a^(1/rho)))^rho``. With ``points`` the places are those of a table of so many
    levels, of which the indices ``int(low points) .. int(high points)`` are drawn with
    equal chances, as in DMD2 (0.02 to 0.98 for the gap, all 1000 for fake score and
    GAN) and FastGen (0.002 to 0.998); without, they are continuous (SiD: 0 to 0.8).

    Attributes:
      low: lowest place.
      high: highest place.
      points: levels of the table; None for a continuous place.
      sigma_min: lowest level.
      sigma_max: highest level.
      rho: 7 in EDM.
    """

    low: float = 0.0
    high: float = 1.0
    points: int | None = 1000
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        _check_share(self.low, self.high)

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        if self.points is None:
            place = jax.random.uniform(key, shape, minval=self.low, maxval=self.high)
        else:
            ends = _index_range(self.low, self.high, self.points)
            place = jax.random.randint(key, shape, *ends) / (self.points - 1)
        ratio = _place_ratio(place, self.sigma_min, self.sigma_max, self.rho)
        return inside(path.time_of_ratio(ratio), path)


@words.call
@dataclasses.dataclass(frozen=True)
class Timesteps:
    """``t_max (i + 1) / count``, ``i`` one of ``int(low count) .. int(high count)``.

    The timesteps of networks of discrete time: DMD2 draws 20 to 980 of 1000 for the
    gap and all of them for the fake score, SiD-LSG 20 to 979 for both.

    Attributes:
      low: first of them, as a share.
      high: last of them.
      count: timesteps of the schedule.
    """

    low: float = 0.0
    high: float = 1.0
    count: int = 1000

    def __post_init__(self):
        _check_share(self.low, self.high)

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        ends = _index_range(self.low, self.high, self.count)
        index = jax.random.randint(key, shape, *ends)
        return inside((index + 1) * (path.t_max / self.count), path)


@words.call
@dataclasses.dataclass(frozen=True)
class KarrasSteps:
    """Even steps of the index into Karras's table from its top to the data.

    Start ``k`` of ``n`` is the level of index ``points (1 - k/n) - 1``: DMD2's
    denoising timesteps 999, 749, 499, 249, which are 80, 17.5, 2.5 and 0.17 in EDM's
    table. (The starts of `times.KarrasGrid` go down to ``sigma_min`` instead, where few
    steps would be lost.)

    Attributes:
      points: levels of the table.
      sigma_min: lowest level.
      sigma_max: highest level.
      rho: 7 in EDM.
    """

    points: int = 1000
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]:
        n = checked_steps(steps)
        places = [max(self.points * (1 - k / n) - 1, 0) for k in range(n)]
        places = [place / (self.points - 1) for place in places]
        ends = (self.sigma_min, self.sigma_max, self.rho)
        with jax.ensure_compile_time_eval():
            ratios = jnp.asarray([_place_ratio(place, *ends) for place in places])
            return check_times((*path.time_of_ratio(ratios), 0.0))


# Few-step students begin at pure noise and go down evenly in the clock of their
# network, which for EDM is the index into Karras's table and not sigma.
CLOCK_GRID = ByPath(EvenGrid(), edm=KarrasSteps())
