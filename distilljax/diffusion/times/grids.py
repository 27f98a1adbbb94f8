"""Time grids of samplers and of discrete training, from noise to data."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from distilljax.diffusion.paths import Path
from distilljax.diffusion.times.laws import shifted
from distilljax.runtime import words
from distilljax.runtime.errors import check_whole

Array = jax.Array


class Grid(Protocol):
    """``(steps, path) -> times``: ``steps + 1`` decreasing times ending at the data."""

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]: ...


class GrowingGrid(Grid, Protocol):
    """A grid whose number of steps may change while a program runs."""

    def at(self, index: Array, steps: Array, path: Path) -> Array:
        """Times of the indices ``0 .. steps``, all of them arrays."""
        ...


def check_times(times: tuple[float, ...]) -> tuple[float, ...]:
    """Returns decreasing times as floats.

    Raises:
      ValueError: with fewer than two times, times that do not decrease, are not finite
        or lie beyond the data's.
    """
    try:
        out = tuple(float(t) for t in times)
    except TypeError as error:
        raise ValueError(f"times must be numbers, got {times!r}") from error
    if not all(math.isfinite(t) for t in out) or (out and min(out) < 0.0):
        raise ValueError(f"times must be finite and not below 0 (the data), got {out}")
    if len(out) < 2:
        raise ValueError(f"times must hold a start and an end, got {out}: 0 steps")
    if any(a <= b for a, b in zip(out[:-1], out[1:], strict=True)):
        raise ValueError(f"times must decrease strictly from noise to data, got {out}")
    return out


def checked_steps(steps: int) -> int:
    """A number of steps, at least 1."""
    if check_whole("steps", steps) < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return steps


@words.call
@dataclasses.dataclass(frozen=True)
class EvenGrid:
    """Equal steps of the clock from ``start * t_max`` to 0."""

    start: float = 1.0

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]:
        n = checked_steps(steps)
        top = self.start * path.t_max
        return check_times(tuple(top * (1.0 - i / n) for i in range(n + 1)))

    def at(self, index: Array, steps: Array, path: Path) -> Array:
        """See `GrowingGrid`."""
        return self.start * path.t_max * (1.0 - index / steps)


@words.call
@dataclasses.dataclass(frozen=True)
class AngleGrid:
    """Equal steps of the noise angle ``arctan2(sigma, alpha)`` to 0, on any path.

    Attributes:
      start: share of the angle at ``t_max`` from which they go, in ``(0, 1]``.
      ratio: ``sigma/alpha`` from which they go instead (SiD's ``sigma_init``).
    """

    start: float = 1.0
    ratio: float | None = None

    def __post_init__(self):
        if not 0.0 < self.start <= 1.0:
            raise ValueError(f"start must lie in (0, 1], got {self.start}")
        if self.ratio is not None and (self.start != 1.0 or self.ratio <= 0.0):
            raise ValueError(
                "ratio must be positive and stands in place of start, got "
                f"ratio={self.ratio}, start={self.start}"
            )

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]:
        n = checked_steps(steps)
        with jax.ensure_compile_time_eval():
            top = self.start * path.angle(jnp.asarray(path.t_max))
            if self.ratio is not None:
                top = jnp.minimum(jnp.arctan(jnp.asarray(self.ratio)), top)
            angles = top * (1.0 - jnp.arange(n) / n)
            times = [float(t) for t in path.time_of_angle(angles)]
        if self.start == 1.0 and self.ratio is None:
            times[0] = path.t_max
        return check_times((*times, 0.0))


def _karras(share: Array | float, low: float, high: float, rho: float) -> Array | float:
    """Level a ``share`` of the way down, even in ``level^(1/rho)``."""
    lo, hi = low ** (1 / rho), high ** (1 / rho)
    return (hi + share * (lo - hi)) ** rho


def _karras_share(
    level: Array | float, low: float, high: float, rho: float
) -> Array | float:
    """Inverse of `_karras`."""
    lo, hi = low ** (1 / rho), high ** (1 / rho)
    return (hi - level ** (1 / rho)) / (hi - lo)


def _of_ratios(ratios: list[float], path: Path) -> tuple[float, ...]:
    # A grid is numbers, also inside a loss that is being traced.
    with jax.ensure_compile_time_eval():
        return tuple(map(float, path.time_of_ratio(jnp.asarray(ratios))))


@words.call
@dataclasses.dataclass(frozen=True)
class KarrasGrid:
    """``(a^(1/rho) + i/(n-1) (b^(1/rho) - a^(1/rho)))^rho`` in sigma/alpha, then 0.

    The grid on which EDM solves its ODE. The points of consistency models are
    `KarrasPoints`.

    Attributes:
      sigma_min: last noise-to-signal ratio before 0.
      sigma_max: first one.
      rho: 7 in EDM.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]:
        n = checked_steps(steps)
        ends = self.sigma_min, self.sigma_max, self.rho
        ratios = [_karras(i / max(n - 1, 1), *ends) for i in range(n)]
        return check_times((*_of_ratios(ratios, path), 0.0))

    def ratio(self, index: Array, steps: Array | float) -> Array:
        """``sigma/alpha`` of grid points; 0 at ``index = steps``."""
        share = index / jnp.maximum(steps - 1, 1)
        level = _karras(share, self.sigma_min, self.sigma_max, self.rho)
        return jnp.where(index >= steps, 0.0, level)

    def index(self, ratio: Array, steps: Array | float) -> Array:
        """Real-valued index of a ``sigma/alpha``; inverse of `ratio`."""
        share = _karras_share(ratio, self.sigma_min, self.sigma_max, self.rho)
        return share * jnp.maximum(steps - 1, 1)

    def at(self, index: Array, steps: Array, path: Path) -> Array:
        """See `GrowingGrid`."""
        return path.time_of_ratio(self.ratio(index, steps))


@words.call
@dataclasses.dataclass(frozen=True)
class KarrasPoints:
    """``steps + 1`` Karras levels from ``sigma_max`` down: the bounds of all segments.

    ``(a^(1/rho) + i/n (b^(1/rho) - a^(1/rho)))^rho``, ``i = 0 .. n``, in sigma/alpha:
    the ``N = n + 1`` points of Consistency Models (Song et al. 2023, appendix C) and of
    CTM, and progressive distillation's steps on EDM. `KarrasGrid` spends its last step
    below ``sigma_min``, where these have nothing to learn.

    Attributes:
      sigma_min: last noise-to-signal ratio.
      sigma_max: first one.
      rho: 7 in EDM.
      end: level in place of the last. None keeps ``sigma_min`` on EDM, where
        consistency models are the identity (`Path.boundary`), and is 0 elsewhere.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    end: float | None = None

    def _last(self, path: Path) -> float:
        if self.end is not None:
            return self.end
        return self.sigma_min if path.exploding else 0.0

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]:
        n = checked_steps(steps)
        ends = self.sigma_min, self.sigma_max, self.rho
        ratios = [_karras(i / n, *ends) for i in range(n)]
        last = self._last(path)
        # The inverse of a noise level need not give the data's time to all digits.
        end = _of_ratios([last], path) if last else (0.0,)
        return check_times((*_of_ratios(ratios, path), *end))

    def at(self, index: Array, steps: Array, path: Path) -> Array:
        """See `GrowingGrid`."""
        level = _karras(index / steps, self.sigma_min, self.sigma_max, self.rho)
        last = self._last(path)
        t = path.time_of_ratio(jnp.where(index >= steps, last, level))
        return t if last else jnp.where(index >= steps, 0.0, t)


@words.call
@dataclasses.dataclass(frozen=True)
class PathGrid:
    """The grid on which models of a path are sampled, where nobody says another.

    On EDM, whose clock is the noise level, Karras levels with rho 7 between the ends of
    the path's clock; even steps of the clock elsewhere. (Even steps on EDM would be
    sigma 80 and 40, both of them noise.)

    Attributes:
      solved: whether an ODE is solved on it. A student's ``n`` steps end at 0 from the
        ``n`` upper ones of ``n + 1`` levels, ``80, 2.5, 0`` in two steps; a solver's
        are EDM's own, `KarrasGrid`, whose last step starts at ``sigma_min``.
      floor: whether the steps of a student end at ``sigma_min`` instead of 0.
      levels: on EDM the levels at which all steps but the first begin, for numbers of
        steps for which a paper names them: ``((0.821,),)`` for two.
    """

    solved: bool = False
    floor: bool = False
    levels: tuple[tuple[float, ...], ...] = ()

    def _of(self, path: Path) -> GrowingGrid:
        if not path.exploding:
            return EvenGrid()
        ends = path.t_min, path.t_max
        if self.solved:
            return KarrasGrid(*ends)
        return KarrasPoints(*ends, end=None if self.floor else 0.0)

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]:
        even = self._of(path)(steps, path)
        for row in self.levels if path.exploding else ():
            if len(row) == steps - 1:
                return check_times((even[0], *row, even[-1]))
        return even

    def at(self, index: Array, steps: Array, path: Path) -> Array:
        """See `GrowingGrid`; without ``levels``."""
        return self._of(path).at(index, steps, path)


def between(t: float, s: float, steps: int, path: Path) -> list[float]:
    """Start times of equal solver steps from ``t`` to ``s``.

    Equal in the clock; on EDM, whose clock is the noise level, in its seventh root.
    """
    root = 7.0 if path.exploding else 1.0
    a, b = t ** (1.0 / root), s ** (1.0 / root)
    return [t, *((a + (b - a) * i / steps) ** root for i in range(1, steps))]


@words.call
@dataclasses.dataclass(frozen=True)
class TableGrid:
    """Times chosen by hand for some numbers of steps, another grid for the others.

    Attributes:
      starts: per entry the start times of all steps, in the path's clock; the end 0 is
        added. The number of steps is the length.
      other: grid for numbers of steps without an entry.
      angles: whether the starts are noise angles ``arctan2(sigma, alpha)``, TrigFlow's
        clock, and serve on every path.
    """

    starts: tuple[tuple[float, ...], ...]
    other: Grid = PathGrid()
    angles: bool = False

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]:
        for row in self.starts:
            if len(row) == checked_steps(steps):
                return check_times((*self._times(row, path), 0.0))
        return self.other(steps, path)

    def _times(self, row: tuple[float, ...], path: Path) -> tuple[float, ...]:
        if not self.angles:
            return row
        with jax.ensure_compile_time_eval():
            return tuple(float(path.time_of_angle(jnp.asarray(a))) for a in row)


@words.call
@dataclasses.dataclass(frozen=True)
class ShiftedGrid:
    """Equal steps of an unshifted clock, the last one shorter or longer than the rest.

    With ``u`` falling from 1 to 0 in steps of ``1 / (steps - 1 + last)`` and a last one
    of ``last`` times that, the times are ``t_max k u / (1 + (k - 1) u)``.

    Attributes:
      shift: ``k``; 3.2 in pi-Flow's text-to-image models.
      last: length of the last step in units of the others; 0.5 there.
    """

    shift: float = 1.0
    last: float = 1.0

    def __post_init__(self):
        if self.shift <= 0.0 or self.last <= 0.0:
            raise ValueError(
                f"shift and last must be positive, got {self.shift}, {self.last}"
            )

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]:
        n = checked_steps(steps)
        shares = [1.0 - i / (n - 1 + self.last) for i in range(n)]
        return check_times(
            (*(path.t_max * shifted(u, self.shift) for u in shares), 0.0)
        )
