"""Optimizers and learning rates of a role, as settings of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from distilljax.runtime.errors import unknown
from distilljax.runtime.values import check_values

SCHEDULES = ("constant", "cosine", "warmup_cosine", "inverse_sqrt")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the updates of a role, as a factor of ``lr``.

    Attributes:
      name: ``constant``, ``cosine``, ``warmup_cosine`` or ``inverse_sqrt``.
      warmup: updates of linear warm-up from 0 (every schedule).
      end: last factor of the cosines.
      steps: updates until the cosines end; default the role's updates in the run. For
        ``inverse_sqrt`` the updates until the decay starts; default ``warmup``.
      restart: update at which the schedule starts again for the rest of the run,
        warm-up included: where a method's first stage ends, say. None for no restart.
      restart_factor: factor of ``lr`` from there on.
    """

    name: str = "constant"
    warmup: int = 0
    end: float = 0.0
    steps: int | None = None
    restart: int | None = None
    restart_factor: float = 1.0

    def __post_init__(self):
        check_values(self, "schedule.")
        if self.name not in SCHEDULES:
            raise ValueError(unknown("schedule", self.name, SCHEDULES))
        if self.warmup < 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(
                f"schedule: warmup must be at least 0 and steps at least 1, got "
                f"warmup={self.warmup}, steps={self.steps}"
            )
        if self.name == "warmup_cosine" and self.warmup < 1:
            raise ValueError("schedule 'warmup_cosine' needs warmup >= 1, got 0")
        if self.name == "inverse_sqrt" and max(self.warmup, self.steps or 0) < 1:
            raise ValueError("schedule 'inverse_sqrt' needs warmup or steps >= 1")
        if self.restart is not None and (self.restart < 1 or self.restart_factor < 0.0):
            raise ValueError(
                "schedule: restart must be at least 1 and restart_factor not negative, "
                f"got {self.restart} and {self.restart_factor}"
            )

    @property
    def open_ended(self) -> bool:
        """Whether the values do not depend on the length of the run."""
        return self.steps is not None or self.name in ("constant", "inverse_sqrt")

    def build(self, lr: float, updates: int) -> Callable[[Any], jax.Array]:
        """``update count -> learning rate``.

        Args:
          lr: peak learning rate.
          updates: updates of the role in the whole run.
        """
        warmup, end = self.warmup, self.end

        def part(count, length):
            factor = jnp.ones_like(count)
            if self.name in ("cosine", "warmup_cosine"):
                horizon = max((self.steps or length) - warmup, 1)
                share = jnp.clip((count - warmup) / horizon, 0.0, 1.0)
                factor = end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))
            elif self.name == "inverse_sqrt":
                flat = float(self.steps or warmup)
                factor = jnp.sqrt(flat / jnp.maximum(count, flat))
            if warmup:
                factor *= jnp.minimum((count + 1.0) / warmup, 1.0)
            return lr * factor

        def schedule(count):
            count = jnp.asarray(count, jnp.float32)
            if self.restart is None:
                return part(count, updates)
            again = part(count - self.restart, updates - self.restart)
            first = part(count, self.restart)
            return jnp.where(count < self.restart, first, self.restart_factor * again)

        return schedule


# Norm up to which the gradient of a `Bounded` optimizer is known to do no harm.
BOUND = 1e10


class Bounded(optax.GradientTransformation):
    """An optimizer that makes finite numbers out of finite numbers.

    From parameters (below 1e38) and moments that are finite and no narrower than
    float32, and a gradient whose norm is at most `BOUND`, every parameter and moment
    after a step is finite. States that are read back are looked at, see `checkpoints`.
    A transformation around it is not of this type.
    """


class Settings(Protocol):
    """What an optimizer reads; see `config.RoleConfig`."""

    optimizer: str
    lr: float
    schedule: ScheduleConfig
    betas: tuple[float, float]
    eps: float
    weight_decay: float


def _adam(lr, c: Settings):
    return optax.adam(lr, *c.betas, eps=c.eps)


def _adamw(lr, c: Settings):
    return optax.adamw(
        lr, *c.betas, eps=c.eps, weight_decay=c.weight_decay, mask=_matrices
    )


def _nadam(lr, c: Settings):
    return optax.nadam(lr, *c.betas, eps=c.eps)


def _radam(lr, c: Settings):
    return optax.radam(lr, *c.betas, eps=c.eps)


def _rmsprop(lr, c: Settings):
    return optax.rmsprop(lr, decay=c.betas[1], eps=c.eps)


def _sgd(lr, c: Settings):
    return optax.sgd(lr, momentum=c.betas[0] or None)


def _lion(lr, c: Settings):
    return optax.lion(lr, *c.betas, weight_decay=c.weight_decay, mask=_matrices)


def _muon(lr, c: Settings):
    return optax.contrib.muon(
        lr,
        eps=c.eps,
        weight_decay=c.weight_decay,
        weight_decay_mask=_matrices,
        adam_b1=c.betas[0],
        adam_b2=c.betas[1],
    )


OPTIMIZERS = {
    "adam": _adam,
    "adamw": _adamw,
    "lion": _lion,
    "muon": _muon,
    "nadam": _nadam,
    "radam": _radam,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
}
DECAYING = ("adamw", "lion", "muon")


def built(settings: Settings, updates: int) -> optax.GradientTransformation:
    """The optimizer of a role, `Bounded` where its settings leave no way to overflow.

    An update of Adam is at most ``lr |m| / (1 - b1) / eps``, of the others less: with
    the limits here it is under 1e32, and a decay makes no parameter larger.

    Args:
      settings: of the role.
      updates: updates of the role in the whole run.
    """
    schedule, lr = settings.schedule, settings.lr
    rate = lr if schedule == ScheduleConfig() else schedule.build(lr, updates)
    made = OPTIMIZERS[settings.optimizer](rate, settings)
    largest = lr * max(1.0, abs(schedule.end)) * max(1.0, schedule.restart_factor)
    safe = (
        settings.optimizer in ("adam", "adamw", "lion")
        and settings.eps >= 1e-12
        and max(settings.betas) <= 1.0 - 1e-7
        and largest <= 1e3
        and settings.weight_decay * max(largest, 1.0) <= 1.0
    )
    return Bounded(*made) if safe else made


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
