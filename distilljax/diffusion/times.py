"""Laws of training times, time grids and schedules over training steps.

All are frozen dataclasses, so that equality means something when methods are composed.
A law is called with a key, a shape and the path in whose clock the times are wanted;
fractions are of ``path.t_max``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Protocol

import jax
import jax.numpy as jnp

from distilljax.diffusion.paths import Path, linear
from distilljax.diffusion.shares import Shares
from distilljax.runtime import words
from distilljax.runtime.errors import check_finite, check_whole

Array = jax.Array
Schedule = float | Callable[[Array], Array]
# The type of attributes and arguments that count training cycles, by which a run of
# another length finds them, see `methods.lengths`.
Cycles = Annotated[int, "training cycles"]


class Law(Protocol):
    """``(key, shape, path) -> times`` in the path's clock."""

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array: ...


class PairLaw(Protocol):
    """``(key, shape, path) -> (t, s)`` with ``s <= t``.

    One that puts fixed rows of a batch on the diagonal ``s = t`` also has a method
    ``shares``, see `Pair`.
    """

    def __call__(
        self, key: Array, shape: tuple[int, ...], path: Path
    ) -> tuple[Array, Array]: ...


def fixed_shares(law: PairLaw, batch: int) -> Shares | None:
    """Rows of a batch that a law puts ``(off, on)`` the diagonal, None if it draws."""
    shares = getattr(law, "shares", None)
    return None if shares is None else shares(batch)


def inside(t: Array, path: Path) -> Array:
    """Times within the clock of a path."""
    return jnp.clip(t, path.t_min, path.t_max)


class _Finite:
    """Refuses fields that are NaN or infinite."""

    def __post_init__(self):
        check_finite(type(self).__name__, self)


@words.call
@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform over ``[low, high]``, fractions of the path's clock."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(
                f"low and high must be fractions with low < high, got {self.low}, "
                f"{self.high}"
            )

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        u = jax.random.uniform(key, shape, minval=self.low, maxval=self.high)
        return inside(u * path.t_max, path)


@words.call
def central(margin: float = 0.02) -> Uniform:
    """Uniform without a margin at both ends (DMD's generator times)."""
    return Uniform(margin, 1.0 - margin)


@words.call
@dataclasses.dataclass(frozen=True)
class LogitNormal(_Finite):
    """``t_max sigmoid(N(mean, std^2))`` (Esser et al. 2024; MeanFlow: -0.4, 1)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        u = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, shape))
        return inside(u * path.t_max, path)


@words.call
@dataclasses.dataclass(frozen=True)
class LogNormal(_Finite):
    """``log(sigma/alpha) ~ N(mean, std^2)`` on any path.

    On EDM the law of ``log sigma``; on TrigFlow that of ``log(sigma_d tan t)`` (sCM).
    """

    mean: float = -1.0
    std: float = 1.4

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        ratio = jnp.exp(self.mean + self.std * jax.random.normal(key, shape))
        return inside(path.time_of_ratio(ratio), path)


@words.call
@dataclasses.dataclass(frozen=True)
class ArctanNormal(_Finite):
    """``t_max (2/pi) arctan(exp(N(mean, std^2)))`` (FACM: -0.8, 1.6).

    On TrigFlow with ``sigma_d = 1`` it is `LogNormal`; elsewhere it keeps that law of
    the clock.
    """

    mean: float = -0.8
    std: float = 1.6

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        ratio = jnp.exp(self.mean + self.std * jax.random.normal(key, shape))
        return inside(path.t_max * (2.0 / math.pi) * jnp.arctan(ratio), path)


@words.call
@dataclasses.dataclass(frozen=True)
class Point(_Finite):
    """Always the same time, a fraction of the clock; 1 is pure noise."""

    at: float = 1.0

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        return jnp.full(shape, self.at * path.t_max, jnp.float32)


def shifted(u: Any, shift: float) -> Any:
    """``k u / (1 + (k - 1) u)`` of a fraction ``u``; its inverse has ``1/k``."""
    return shift * u / (1.0 + (shift - 1.0) * u)


@words.call
@dataclasses.dataclass(frozen=True)
class Shifted(_Finite):
    """``k u / (1 + (k - 1) u)`` of another law's fraction ``u``; k > 1 is noisier."""

    law: Law
    shift: float = 3.0

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        u = self.law(key, shape, path) / path.t_max
        return inside(shifted(u, self.shift) * path.t_max, path)


@words.call
@dataclasses.dataclass(frozen=True)
class InClock:
    """The times of a law in the clock of another path, at the same noise angle.

    ``InClock(Shifted(Uniform(), 5.0))`` is ``sigma/alpha = 5 u / (1 - u)``
    on any path, on TrigFlow ``t = arctan(5 u / (1 - u))``: rectified flow's shifted
    time, in which a law shifted in TrigFlow's own clock would lie elsewhere.

    Attributes:
      law: the law.
      of: path in whose clock it is drawn; default the linear one, rectified flow's.
    """

    law: Law
    of: Path | None = None

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        of = linear() if self.of is None else self.of
        angle = of.angle(self.law(key, shape, of))
        return inside(path.time_of_angle(angle), path)


@words.call
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Draws from one of several laws.

    Attributes:
      parts: ``((share, law), ...)``; the shares add up to 1.
    """

    parts: tuple[tuple[float, Law], ...]

    def __post_init__(self):
        total = sum(share for share, _ in self.parts)
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"the shares of a mixture must add up to 1, got {total}")

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        pick, *keys = jax.random.split(key, len(self.parts) + 1)
        u = jax.random.uniform(pick, shape)
        out, edge = jnp.zeros(shape), 0.0
        for k, (share, law) in zip(keys, self.parts, strict=True):
            out = jnp.where(u >= edge, law(k, shape, path), out)
            edge += share
        return out


@words.call
@dataclasses.dataclass(frozen=True)
class Choice(_Finite):
    """Uniform over a list of times in the path's clock (DMD2's step grid)."""

    times: tuple[float, ...]

    def __call__(self, key: Array, shape: tuple[int, ...], path: Path) -> Array:
        return jax.random.choice(key, jnp.asarray(self.times, jnp.float32), shape)


@words.call
@dataclasses.dataclass(frozen=True)
class Pair(_Finite):
    """Two-time law of flow-map training: the larger draw is ``t``, the smaller ``s``.

    Attributes:
      law: law of both draws, or of ``t`` alone if ``end`` is given.
      diagonal: share with ``s = t`` (plain flow matching).
      to_data: share of the rest with ``s = 0``.
      from_noise: share of all with ``t = t_max``.
      end: law of ``s``, which is cut at ``t``; more than ``diagonal`` then lie on the
        diagonal. With it ``Pair(LogitNormal(-0.6, 1.6), 0.25,
        end=LogitNormal(-4.0, 1.6))`` is the law of MeanFlow's CIFAR-10 release
        (Gsunshine/py-meanflow, v1).
      fixed: whether the rows on the diagonal are the same in every batch, rather than
        drawn one by one. Of ``B`` rows ``int(diagonal B)`` lie there as in MeanFlow's
        ImageNet release (Gsunshine/meanflow), interleaved with the others (see
        `Shares`); a loss can then leave out their derivative. The law of a row averaged
        over the batch stays the same.
    """

    law: Law = LogitNormal(-0.4, 1.0)
    diagonal: float = 0.75
    to_data: float = 0.0
    from_noise: float = 0.0
    end: Law | None = None
    fixed: bool = False

    def shares(self, batch: int) -> Shares | None:
        """``(off, on)`` the diagonal, of a batch; None unless they are fixed."""
        if not self.fixed:
            return None
        # A product like 0.7 * 10 may come out just below an integer.
        still = int(self.diagonal * batch + 1e-6)
        return Shares((batch - still, still))

    def __call__(
        self, key: Array, shape: tuple[int, ...], path: Path
    ) -> tuple[Array, Array]:
        keys = jax.random.split(key, 5)
        a = self.law(keys[0], shape, path)
        b = (self.law if self.end is None else self.end)(keys[1], shape, path)
        t = jnp.maximum(a, b) if self.end is None else a
        s = jnp.minimum(a, b)

        def chosen(k: Array, share: float) -> Array:
            return jax.random.uniform(k, shape) < share

        t = jnp.where(chosen(keys[2], self.from_noise), path.t_max, t)
        s = jnp.where(chosen(keys[3], self.to_data), 0.0, s)
        shares = self.shares(shape[0]) if shape else None
        if shares is None:
            still = chosen(keys[4], self.diagonal)
        else:
            still = shares.part().reshape(-1, *(1,) * (len(shape) - 1)) == 1
        return t, jnp.where(still, t, s)


@words.call
@dataclasses.dataclass(frozen=True)
class Interval:
    """Two-time law by the length of the jump: ``t - s`` from a law, then its place.

    ``h`` from ``law``, ``s`` uniform in ``[0, t_max - h]``, ``t = s + h`` (Align Your
    Flow 2025: ``h = sigmoid(N(-0.8, 1))``).

    Attributes:
      law: law of the length, in the path's clock.
    """

    law: Law = LogitNormal(-0.8, 1.0)

    def __call__(
        self, key: Array, shape: tuple[int, ...], path: Path
    ) -> tuple[Array, Array]:
        length, place = jax.random.split(key)
        h = self.law(length, shape, path)
        s = jax.random.uniform(place, shape) * (path.t_max - h)
        return jnp.minimum(s + h, path.t_max), s


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


def value_at(schedule: Schedule, step: Array | int) -> Array:
    """A schedule's value at a training step, float32."""
    value = schedule(jnp.asarray(step)) if callable(schedule) else schedule
    return jnp.asarray(value, jnp.float32)


@words.call
@dataclasses.dataclass(frozen=True)
class Ramp:
    """Linear from ``start`` to ``end`` over ``steps``, constant after."""

    steps: Cycles
    start: float = 0.0
    end: float = 1.0

    def __call__(self, step: Array) -> Array:
        share = jnp.clip(step / max(self.steps, 1), 0.0, 1.0)
        if self.steps <= 0:
            share = jnp.ones_like(share)
        return self.start + (self.end - self.start) * share


@words.call
@dataclasses.dataclass(frozen=True)
class Switch:
    """``before`` until step ``at``, ``after`` from it on."""

    at: Cycles
    before: float = 0.0
    after: float = 1.0

    def __call__(self, step: Array) -> Array:
        return jnp.where(step < self.at, self.before, self.after)


@words.call
@dataclasses.dataclass(frozen=True)
class Minimum:
    """The smaller of two schedules; ``Minimum(0.99, Ramp(10))`` stops short of 1."""

    a: Schedule
    b: Schedule

    def __call__(self, step: Array) -> Array:
        return jnp.minimum(value_at(self.a, step), value_at(self.b, step))


@words.call
@dataclasses.dataclass(frozen=True)
class Product:
    """Product of two schedules (weights multiply under compose)."""

    a: Schedule
    b: Schedule

    def __call__(self, step: Array) -> Array:
        return value_at(self.a, step) * value_at(self.b, step)
