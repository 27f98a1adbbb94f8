"""Schedules: functions of the training cycle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from distilljax.runtime import words

Array = jax.Array

Schedule = float | Callable[[Array], Array]

# The type of attributes and arguments that count training cycles, by which a run of
# another length finds them, see `methods.lengths`.
Cycles = Annotated[int, "training cycles"]


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
