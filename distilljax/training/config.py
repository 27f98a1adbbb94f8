"""How a method is trained: what belongs to the experiment and not to the method.

Settings are frozen dataclasses built from plain mappings or
`ml_collections.ConfigDict`, nested by role:

    {"cycles": 2000, "batch_size": 256, "student": {"lr": 1e-4, "ema": 0.999}}

Keys that are no field of `TrainConfig` name roles. ``default`` holds what the roles
share; a role's own section wins.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distilljax.runtime.errors import unknown
from distilljax.runtime.values import check_values
from distilljax.training.optimizers import (
    DECAYING,
    OPTIMIZERS,
    ScheduleConfig,
    built,
)
from distilljax.training.placement import AXES, ROWS, Rule

LOGGERS = ("tensorboard", "wandb")


@dataclasses.dataclass(frozen=True)
class RoleConfig:
    """How one role is trained.

    Attributes:
      optimizer: ``adam, adamw, lion, muon, nadam, radam, rmsprop, sgd``.
      lr: peak learning rate.
      betas: decays of the first and second moment (sgd: momentum is the first;
        rmsprop: decay is the second).
      eps: of the optimizer.
      weight_decay: decoupled, on leaves with two axes or more; adamw, lion, muon.
      schedule: of the learning rate; a name alone stands for its defaults.
      clip: largest global norm of the gradient; None for no clipping.
      accumulate: microbatches of one update; they divide ``batch_size``.
      ema: decay of an evaluation EMA of the parameters, per cycle; None for none.
      ema_half_life: samples after which parameters count half in the EMA, in place of
        ``ema`` (EDM's 500 000 on CIFAR-10).
      ema_ramp: how the EMA begins. None: the decay is at most ``(1 + n) / (10 + n)``
        after ``n`` cycles. A positive number: the half-life is at most this share of
        the cycles so far, 0.05 in EDM; with ``ema`` near 1 this is EDM2's power
        function, 0.0386 and 0.0873 for relative widths of 0.05 and 0.1. 0: the whole
        decay from the first cycle on.
      rules: where parameters live on the mesh, ``[[path, [axis or None, ...]], ...]``;
        see `placement.Rule`. None for the default of `placement.placed`.
    """

    optimizer: str = "adam"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None
    ema_half_life: float | None = None
    ema_ramp: float | None = None
    rules: tuple[Any, ...] | None = None

    def __post_init__(self):
        check_values(self)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(unknown("optimizer", self.optimizer, OPTIMIZERS))
        if self.weight_decay and self.optimizer not in DECAYING:
            raise ValueError(
                f"optimizer {self.optimizer!r} has no weight decay, got "
                f"{self.weight_decay}; use one of {', '.join(DECAYING)}"
            )
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")
        if self.lr < 0.0 or self.eps <= 0.0 or self.weight_decay < 0.0:
            raise ValueError(
                f"lr and weight_decay must not be negative and eps must be positive, "
                f"got {self.lr}, {self.weight_decay}, {self.eps}"
            )
        if self.clip is not None and self.clip <= 0.0:
            raise ValueError(f"clip must be positive or None, got {self.clip}")
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise ValueError(f"ema must lie in (0, 1) or be None, got {self.ema}")
        if self.ema is not None and self.ema_half_life is not None:
            raise ValueError(
                f"pass ema or ema_half_life, got {self.ema} and {self.ema_half_life}"
            )
        if self.ema_half_life is not None and self.ema_half_life <= 0.0:
            raise ValueError(
                f"ema_half_life must be positive or None, got {self.ema_half_life}"
            )
        if self.ema_ramp is not None and not (self.averaged and self.ema_ramp >= 0.0):
            raise ValueError(
                "ema_ramp must be at least 0 and stand beside ema or ema_half_life, "
                f"got {self.ema_ramp}"
            )
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}")
        _ = self.placement

    @property
    def placement(self) -> tuple[Rule, ...] | None:
        """``rules`` as records."""
        return _rules(self.rules)

    @property
    def averaged(self) -> bool:
        """Whether an evaluation EMA is kept."""
        return self.ema is not None or self.ema_half_life is not None

    def ema_decay(self, step: Any, batch_size: int) -> jax.Array:
        """Decay of the evaluation EMA at the end of a cycle.

        Args:
          step: cycles before this one.
          batch_size: samples of a cycle.
        """
        step = jnp.asarray(step, jnp.float32)
        if self.ema_half_life is not None:
            decay = 0.5 ** (batch_size / self.ema_half_life)
        else:
            assert self.ema is not None
            decay = self.ema
        if self.ema_ramp is None:
            # It forgets its first parameters in a short run too.
            most = (1.0 + step) / (10.0 + step)
        elif self.ema_ramp == 0.0:
            most = jnp.ones_like(step)
        else:
            most = 0.5 ** (1.0 / jnp.maximum(self.ema_ramp * step, 1e-4))
        return jnp.minimum(jnp.float32(decay), most)

    def build(self, updates: int) -> optax.GradientTransformation:
        """The optimizer, without clipping (the cycle clips with the norm it logs).

        Args:
          updates: updates of the role in the whole run.
        """
        return built(self, updates)


def _is_row(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _rules(rules: Any) -> tuple[Rule, ...] | None:
    """Rules of a config as records."""
    if rules is None:
        return None
    out = []
    for rule in rules:
        good = isinstance(rule, (tuple, list)) and len(rule) == 2
        if not good or not isinstance(rule[0], str) or not _is_row(rule[1]):
            raise ValueError(
                f"a rule is [path, [mesh axis or None, ...]], such as "
                f"['qkv/kernel$', ['fsdp', 'tensor']], got {rule!r}"
            )
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(
                f"the path of a rule must be a regular expression, got {rule[0]!r} "
                f"({error})"
            ) from error
        for axis in rule[1]:
            if axis is not None and axis not in AXES:
                raise ValueError(unknown("mesh axis", axis, AXES))
        out.append(Rule(rule[0], tuple(rule[1])))
    return tuple(out)


@dataclasses.dataclass(frozen=True)
class FrozenConfig:
    """How the parameters of frozen roles are held.

    Attributes:
      dtype: ``float32`` or ``bfloat16``, which halves a teacher. Roles that start from
        a teacher start from its parameters as they were given.
      rules: see `RoleConfig`.
    """

    dtype: str = "float32"
    rules: tuple[Any, ...] | None = None

    def __post_init__(self):
        check_values(self, "frozen.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(unknown("dtype", self.dtype, ("float32", "bfloat16")))
        _ = self.placement

    @property
    def placement(self) -> tuple[Rule, ...] | None:
        """``rules`` as records."""
        return _rules(self.rules)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      every: cycles between checkpoints; 0 saves only at the end and on signals.
      keep: newest checkpoints kept.
      keep_period: also keep every checkpoint at a multiple of this many cycles.
      best: metric of the evaluation hook by whose value checkpoints are kept instead of
        by age; the newest is always kept.
      best_mode: ``min`` or ``max``.
    """

    every: int = 1000
    keep: int = 3
    keep_period: int | None = None
    best: str | None = None
    best_mode: str = "min"

    def __post_init__(self):
        check_values(self, "checkpoint.")
        if self.every < 0 or self.keep < 1:
            raise ValueError(
                f"checkpoint: every must be at least 0 and keep at least 1, got "
                f"{self.every}, {self.keep}"
            )
        if self.keep_period is not None and self.keep_period < 1:
            raise ValueError(
                "checkpoint: keep_period must be at least 1 or None, got "
                f"{self.keep_period}"
            )
        if self.best_mode not in ("min", "max"):
            raise ValueError(
                f"best_mode must be 'min' or 'max', got {self.best_mode!r}"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a run is trained.

    Attributes:
      cycles: training cycles of the run (one update of the student each, as a rule).
      batch_size: samples of one update, over all devices and microbatches.
      seed: of initialisation, randomness of training and the order of the data.
      mesh: devices by axis, ``data``, ``fsdp`` and ``tensor``; see `placement`.
      fuse: ``cycle`` (one program a cycle) or ``phase`` (one program a phase).
      log_every: cycles between records in ``metrics.jsonl`` and ``metrics.csv``.
      logging: further loggers, joined by commas: ``tensorboard``, ``wandb``.
      sample_every: cycles between calls of the sample hook; 0 for none.
      evaluate_every: cycles between calls of the evaluation hook; 0 for none.
      diagnose_every: cycles between looks at the samples of a fixed bank of noise, see
        `diagnosis`; 0 for none.
      max_skipped: non-finite updates of a role in a row after which training stops.
      data_timeout: seconds without a sample after which a source counts as hanging and
        training stops; 0 waits for ever.
      ignore_cond: whether labels or other conditions of the source may be left unread
        by every network, which is refused otherwise.
      checkpoint: when to save and what to keep.
      frozen: how the parameters of frozen roles are held.
      roles: settings by role.
      default: settings of roles that are not in ``roles``.
    """

    cycles: int = 1000
    batch_size: int = 128
    seed: int = 0
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": 1})
    fuse: str = "cycle"
    log_every: int = 50
    logging: str = ""
    sample_every: int = 0
    evaluate_every: int = 0
    diagnose_every: int = 0
    max_skipped: int = 20
    data_timeout: float = 600.0
    ignore_cond: bool = False
    checkpoint: CheckpointConfig = CheckpointConfig()
    frozen: FrozenConfig = FrozenConfig()
    roles: Mapping[str, RoleConfig] = dataclasses.field(default_factory=dict)
    default: RoleConfig = RoleConfig()

    def __post_init__(self):
        check_values(self)
        least = {"cycles": 1, "batch_size": 1, "log_every": 1, "max_skipped": 1}
        least |= {"sample_every": 0, "evaluate_every": 0, "diagnose_every": 0}
        least |= {"data_timeout": 0}
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in 0 .. {2**32 - 1}, got {self.seed}")
        for name, low in least.items():
            if getattr(self, name) < low:
                came = getattr(self, name)
                raise ValueError(f"{name} must be at least {low}, got {came}")
        if self.fuse not in ("cycle", "phase"):
            raise ValueError(unknown("fuse", self.fuse, ("cycle", "phase")))
        for name in self.loggers:
            if name not in LOGGERS:
                raise ValueError(unknown("logger", name, LOGGERS))
        for axis, size in self.mesh.items():
            if axis not in AXES:
                raise ValueError(unknown("mesh axis", axis, AXES))
            if size < 1:
                raise ValueError(f"mesh axis {axis!r} must be at least 1, got {size}")

    @property
    def loggers(self) -> tuple[str, ...]:
        """Names in ``logging``."""
        return tuple(name.strip() for name in self.logging.split(",") if name.strip())

    def role(self, name: str) -> RoleConfig:
        """Settings of a role."""
        return self.roles.get(name, self.default)

    def stacked(self, trained: Iterable[str]) -> int:
        """Microbatches in which the loader delivers a batch."""
        return max((self.role(name).accumulate for name in trained), default=1)

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def rows(self) -> int:
        """Parts into which the mesh splits a batch."""
        return math.prod(self.mesh.get(axis, 1) for axis in ROWS)

    @classmethod
    def of(
        cls, values: Mapping[str, Any] | Any, roles: Iterable[str] | None = None
    ) -> TrainConfig:
        """Builds the config from a nested mapping or ConfigDict.

        Args:
          values: settings; keys that are no field name roles.
          roles: roles that may be named; default any.

        Raises:
          ValueError: on a key or role that does not exist, with near matches, and on
            values outside their range.
        """
        if isinstance(values, cls):
            return values.checked(roles)
        if not (isinstance(values, Mapping) or hasattr(values, "to_dict")):
            raise ValueError(f"a config must be a mapping, got {values!r}")
        values = _plain(values)
        if not isinstance(values.get("roles", {}), Mapping):
            raise ValueError(f"roles must be a mapping, got {values['roles']!r}")
        fields = {f.name for f in dataclasses.fields(cls)}
        known = fields | set(() if roles is None else roles)
        default = _section(RoleConfig, "default", values.pop("default", {}), {})
        sections = dict(values.pop("roles", {}))
        for key in [k for k in values if k not in fields]:
            if (roles is not None and key not in known) or (
                roles is None and not isinstance(values[key], Mapping)
            ):
                raise ValueError(unknown("config key or role", key, known))
            sections[key] = values.pop(key)
        base = _to_dict(default)
        built = {
            name: _section(RoleConfig, name, section, base)
            for name, section in sections.items()
        }
        for name, kind in (("checkpoint", CheckpointConfig), ("frozen", FrozenConfig)):
            if name in values:
                values[name] = _section(kind, name, values[name], {})
        return cls(**values, roles=built, default=default).checked(roles)

    def checked(self, roles: Iterable[str] | None) -> TrainConfig:
        """This config, after a check that every role in it exists."""
        known = None if roles is None else tuple(roles)
        for name in self.roles:
            if known is not None and name not in known:
                raise ValueError(unknown("role in config", name, known))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, lists and numbers; `of` turns them back."""
        return _to_dict(self)


def _to_dict(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            f.name: _to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(k): _to_dict(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_to_dict(v) for v in value]
    return value


def _plain(values: Any) -> dict[str, Any]:
    """Copies a mapping or ConfigDict into plain dicts."""
    values = values.to_dict() if hasattr(values, "to_dict") else values
    return {
        k: _plain(v) if isinstance(v, Mapping) or hasattr(v, "to_dict") else v
        for k, v in values.items()
    }


def _section(kind: type, where: str, values: Any, base: Mapping[str, Any]) -> Any:
    """Builds one frozen section from a mapping over a base."""
    if isinstance(values, kind):
        return values
    if isinstance(values, str) and kind is ScheduleConfig:
        values = {"name": values}
    if not isinstance(values, Mapping):
        raise ValueError(f"config section {where!r} must be a mapping, got {values!r}")
    known = {f.name for f in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            raise ValueError(unknown(f"config key in {where!r}", key, known))
    merged = {**base, **values}
    if "schedule" in merged:
        inner = merged["schedule"]
        merged["schedule"] = _section(ScheduleConfig, f"{where}.schedule", inner, {})
    for key in ("betas", "rules"):
        if isinstance(merged.get(key), list):
            merged[key] = tuple(merged[key])
    return kind(**merged)
