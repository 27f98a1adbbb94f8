"""Curricula of consistency training: how finely time is cut as training goes on.

Each is a schedule over cycles, see `times.Schedule`.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from distilljax.diffusion.times import Cycles, Schedule, value_at
from distilljax.runtime import words

Array = jax.Array


@words.call
@dataclasses.dataclass(frozen=True)
class RootSegments:
    """``ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1)`` segments at cycle ``k``.

    One less than the ``N(k)`` points of Consistency Models (Song et al. 2023, appendix
    C): ``s0 - 1`` at first, ``s1`` at the end.

    Attributes:
      cycles: ``K``, cycles of training.
      start: ``s0``, at least 2.
      end: ``s1``.
    """

    cycles: Cycles = 800_000
    start: int = 2
    end: int = 150

    def __post_init__(self):
        if not 2 <= self.start <= self.end:
            raise ValueError(
                f"start must be at least 2 and at most end, got {self.start} and "
                f"{self.end}"
            )

    def __call__(self, step: Array) -> Array:
        share = jnp.clip(step / self.cycles, 0.0, 1.0)
        wide = (self.end + 1) ** 2 - self.start**2
        root = jnp.sqrt(share * wide + self.start**2)
        # Rounding must not push the whole numbers of both ends to the next segment.
        return jnp.ceil(root - 1.0 - 1e-4)


@words.call
@dataclasses.dataclass(frozen=True)
class DoublingSegments:
    """``min(s0 2^floor(k / K'), s1)``, ``K' = floor(K / (log2 floor(s1/s0) + 1))``.

    One less than the ``N(k)`` points of iCT (Song and Dhariwal 2023).

    Attributes:
      cycles: ``K``, cycles of training.
      start: ``s0``.
      end: ``s1``.
    """

    cycles: Cycles = 400_000
    start: int = 10
    end: int = 1280

    def __post_init__(self):
        if not 1 <= self.start <= self.end:
            raise ValueError(
                f"start must be at least 1 and at most end, got {self.start} and "
                f"{self.end}"
            )

    def __call__(self, step: Array) -> Array:
        doublings = math.log2(self.end // self.start) + 1.0
        length = max(int(self.cycles / doublings), 1)
        grown = self.start * 2.0 ** jnp.minimum(step // length, 30)
        return jnp.minimum(grown, float(self.end))


@words.call
@dataclasses.dataclass(frozen=True)
class SegmentDecay:
    """EMA decay ``exp(s0 log(mu0) / segments)`` of a consistency model's target.

    The official code takes the number of segments where the paper writes the number of
    points (Song et al. 2023, appendix C).

    Attributes:
      segments: schedule of the segments.
      decay: ``mu0``.
      start: ``s0``.
    """

    segments: Schedule
    decay: float = 0.9
    start: int = 2

    def __call__(self, step: Array) -> Array:
        return jnp.exp(
            self.start * math.log(self.decay) / value_at(self.segments, step)
        )


@words.call
@dataclasses.dataclass(frozen=True)
class Shrink:
    """``q^-(a + 1)`` in stage ``a`` of equally long stages (ECT).

    Attributes:
      cycles: cycles of training.
      stages: number of stages.
      q: factor from one stage to the next, at least 1.
    """

    cycles: Cycles
    stages: int = 8
    q: float = 2.0

    def __call__(self, step: Array) -> Array:
        stage = jnp.clip(
            jnp.floor(step * self.stages / self.cycles), 0, self.stages - 1
        )
        return self.q ** -(stage + 1.0)
