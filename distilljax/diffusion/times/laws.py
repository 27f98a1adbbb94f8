"""Laws of training times, in the clock of the path that they are asked for."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from distilljax.diffusion.paths import Path, linear
from distilljax.diffusion.shares import Shares
from distilljax.runtime import words
from distilljax.runtime.errors import check_finite

Array = jax.Array


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
