"""Solvers of the probability-flow ODE, and of its SDE, for use inside losses.

A solver is a frozen dataclass; `solve` runs it over a list of times as one scan. Times
may be scalars or differ by sample, and may fall (sampling) or rise (inversion).

| solver | order | evaluations of n steps | step from t to s |
|---|---|---|---|
| `Euler()` | 1 | n | ``x + (s - t) v`` |
| `Heun()` | 2 | 2 n | trapezoid, predicted by Euler |
| `Midpoint()` | 2 | 2 n | ``v`` at the middle of ``[s, t]`` |
| `FireFlow()` | 2 | n + 1 | `Midpoint`, predicted by the last middle's ``v`` |
| `DDIM()` | 1 | n | ``alpha_s X + sigma_s E`` |
| `DPMSolverPP2M()` | 2 | n | DDIM with ``X`` extrapolated in log-SNR |
| `SDE(eta)` | 1 | n | DDIM with a share of fresh noise |

``(X, E)`` are the clean sample and the noise that the field's prediction implies. On
the linear and EDM paths Euler and DDIM are the same step.

The data end. Networks are not asked below ``path.t_min``, where the velocity of the VP
and residual paths is unbounded. A step of Euler, Heun, Midpoint or FireFlow that
touches those times, or ends at ``sigma = 0`` with a field of kind x0 or score (which
leave ``E`` open there), is DDIM's instead; on EDM that is Euler's step into sigma 0.
Its second evaluation is not used but made, so that every step costs the same; FireFlow
jumps along its only one. Times and path alone decide.

References:
  Karras et al., Elucidating the Design Space of Diffusion Models, 2022,
    arXiv:2206.00364, Algorithm 1 (Heun).
  Song et al., Denoising Diffusion Implicit Models, 2020, arXiv:2010.02502, eq. 12, 16.
  Lu et al., DPM-Solver++, 2022, arXiv:2211.01095, Algorithm 2.
  Deng et al., FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing,
    2024, arXiv:2412.07517.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, overload

import jax
import jax.numpy as jnp

from distilljax.diffusion.fields import Field
from distilljax.diffusion.paths import Path, Time, expand, guard
from distilljax.diffusion.predictions import (
    SCORE,
    VELOCITY,
    X0,
    Prediction,
    decompose,
    kind_of,
    recompose,
)
from distilljax.runtime import words

Array = jax.Array

# Below it log-SNR counts as infinite; cos(pi/2) is -4e-8 in float32.
_ENDS = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """A field with its path, as a solver's step sees it.

    Attributes:
      field: prediction of ``kind`` on ``path``.
      path: path of the states and times.
      kind: kind of the field.
      y: known endpoint of a bridge.
    """

    field: Field
    path: Path
    kind: Prediction
    y: Array | None = None

    def asked(self, t: Array) -> Array:
        """The time at which the field is evaluated: at least ``path.t_min``."""
        return jnp.maximum(t, self.path.t_min) if self.path.t_min > 0.0 else t

    def pair(self, x: Array, t: Array) -> tuple[Array, Array]:
        """``(X, E)`` of one evaluation at ``(x, t)``."""
        t = self.asked(t)
        return decompose(self.path, self.kind, self.field(x, t), x, t, self.y)

    def velocity(self, x: Array, t: Array) -> Array:
        """``dx/dt`` of one evaluation at ``(x, t)``."""
        t = self.asked(t)
        out = self.field(x, t)
        if self.kind is VELOCITY:
            return out
        pair = decompose(self.path, self.kind, out, x, t, self.y)
        return recompose(self.path, VELOCITY, *pair, t, self.y)

    def or_jump(
        self,
        moved: Array,
        v: Array,
        at: Step,
        *,
        origin: tuple[Array, Array] | None = None,
    ) -> Array:
        """``moved``, or DDIM's step along ``v`` where the velocity is no guide.

        Args:
          moved: state at ``at.s`` that the solver found.
          v: velocity at the origin.
          at: the step.
          origin: state and time of ``v``; default ``(at.x, at.t)``.

        Returns:
          The state at ``at.s``; see the data end in the module docstring.
        """
        path, open_end = self.path, self.kind is X0 or self.kind is SCORE
        if path.t_min == 0.0 and not open_end:
            return moved
        # The margin keeps a grid that ends at t_min on the regular side.
        singular = jnp.minimum(at.t, at.s) < 0.999 * path.t_min
        if open_end:
            singular |= path.sigma(at.s) == 0.0
        x, t = (at.x, at.t) if origin is None else origin
        pair = decompose(path, VELOCITY, v, x, self.asked(t), self.y)
        jump = path.noise(*pair, at.s, self.y)
        return jnp.where(expand(singular, at.x) > 0, jump, moved)


class Last(NamedTuple):
    """What a step leaves for the next.

    Attributes:
      t: its start time.
      found: what its solver found, shape of ``x``: ``X`` of DPM-Solver++, the velocity
        of FireFlow. Before the first step the velocity at the start for a solver that
        is ``primed``, else 0.
    """

    t: Array
    found: Array


class Step(NamedTuple):
    """A state ``x`` at ``t`` on its way to ``s``.

    Attributes:
      x: state, ``[B, ...]``.
      t: start time, scalar or leading axes.
      s: end time, shape of ``t``.
      last: left by the step before; in the first step its ``t`` is this ``t``.
      noise: standard normal, for noisy solvers.
    """

    x: Array
    t: Array
    s: Array
    last: Last
    noise: Array | None


class Solver(Protocol):
    """One step at a time; a frozen dataclass.

    Attributes:
      order: of the global error in the step size.
      kind: kind of field that it works with; `solve` converts others.
      noisy: whether its steps draw noise.

    One with ``primed = True`` is handed the velocity at the start in its first step,
    for one evaluation more.
    """

    @property
    def order(self) -> int: ...

    @property
    def kind(self) -> str: ...

    @property
    def noisy(self) -> bool: ...

    def evaluations(self, steps: int) -> int:
        """Evaluations of the field in ``steps`` steps."""
        ...

    def step(self, ode: Equation, at: Step) -> tuple[Array, Last]:
        """The state at ``at.s`` and what the next step may use."""
        ...


def _evaluations(steps: int, each: int = 1) -> int:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return steps * each


def _length(at: Step) -> Array:
    return expand(at.s - at.t, at.x)


@words.call
@dataclasses.dataclass(frozen=True)
class Euler:
    """``x + (s - t) v(x, t)``."""

    order = 1
    kind = "velocity"
    noisy = False

    def evaluations(self, steps: int) -> int:
        return _evaluations(steps)

    def step(self, ode: Equation, at: Step) -> tuple[Array, Last]:
        v = ode.velocity(at.x, at.t)
        return ode.or_jump(at.x + _length(at) * v, v, at), at.last


@words.call
@dataclasses.dataclass(frozen=True)
class Heun:
    """``x + (s - t)(v(x, t) + v(x', s)) / 2`` with ``x'`` the Euler step."""

    order = 2
    kind = "velocity"
    noisy = False

    def evaluations(self, steps: int) -> int:
        return _evaluations(steps, 2)

    def step(self, ode: Equation, at: Step) -> tuple[Array, Last]:
        h, v = _length(at), ode.velocity(at.x, at.t)
        ahead = ode.velocity(at.x + h * v, at.s)
        return ode.or_jump(at.x + 0.5 * h * (v + ahead), v, at), at.last


@words.call
@dataclasses.dataclass(frozen=True)
class Midpoint:
    """``x + (s - t) v(x', (s + t)/2)`` with ``x'`` half an Euler step."""

    order = 2
    kind = "velocity"
    noisy = False

    def evaluations(self, steps: int) -> int:
        return _evaluations(steps, 2)

    def step(self, ode: Equation, at: Step) -> tuple[Array, Last]:
        h, v = _length(at), ode.velocity(at.x, at.t)
        middle = ode.velocity(at.x + 0.5 * h * v, 0.5 * (at.s + at.t))
        return ode.or_jump(at.x + h * middle, v, at), at.last


@words.call
@dataclasses.dataclass(frozen=True)
class FireFlow:
    """``x + (s - t) v_m``, ``v_m = v(x + (s - t)/2 v_last, (s + t)/2)``.

    ``v_last`` is the ``v_m`` of the step before, and ``v(x, t)`` in the first step: the
    order of `Midpoint` for half its evaluations.
    """

    order = 2
    kind = "velocity"
    noisy = False
    primed = True

    def evaluations(self, steps: int) -> int:
        return _evaluations(steps) + 1

    def step(self, ode: Equation, at: Step) -> tuple[Array, Last]:
        h, t = _length(at), 0.5 * (at.s + at.t)
        x = at.x + 0.5 * h * at.last.found
        middle = ode.velocity(x, t)
        moved = ode.or_jump(at.x + h * middle, middle, at, origin=(x, t))
        return moved, Last(at.t, middle)


@words.call
@dataclasses.dataclass(frozen=True)
class DDIM:
    """``alpha_s X + beta_s y + sigma_s E`` with the prediction held fixed."""

    order = 1
    kind = "x0"
    noisy = False

    def evaluations(self, steps: int) -> int:
        return _evaluations(steps)

    def step(self, ode: Equation, at: Step) -> tuple[Array, Last]:
        return ode.path.noise(*ode.pair(at.x, at.t), at.s, ode.y), at.last


@words.call
@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M:
    """DDIM along ``X + (h / 2 h_last)(X - X_last)``, ``h`` in ``log(alpha/sigma)``.

    First order in the first step and wherever log-SNR is infinite (``t = t_max`` on the
    linear and TrigFlow paths, ``s = 0``).
    """

    order = 2
    kind = "x0"
    noisy = False

    def evaluations(self, steps: int) -> int:
        return _evaluations(steps)

    def step(self, ode: Equation, at: Step) -> tuple[Array, Last]:
        path, last = ode.path, at.last
        denoised, eps = ode.pair(at.x, at.t)
        now, finite = _half_log_snr(path, at.t)
        ahead, finite_ahead = _half_log_snr(path, at.s)
        before, finite_before = _half_log_snr(path, last.t)
        usable = finite & finite_ahead & finite_before & (last.t != at.t)
        h_last = jnp.where(usable, now - before, 1.0)
        share = jnp.where(usable, 0.5 * (ahead - now) / h_last, 0.0)
        change = expand(share, at.x) * (denoised - last.found)
        # x = alpha X + sigma E stays true when X moves by the change.
        ratio = path.alpha(at.t) / jnp.where(usable, path.sigma(at.t), 1.0)
        eps = eps - expand(ratio, at.x) * change
        moved = path.noise(denoised + change, eps, at.s, ode.y)
        return moved, Last(at.t, denoised)


def _half_log_snr(path: Path, t: Array) -> tuple[Array, Array]:
    """``log(alpha/sigma)``, and where it is finite (0 elsewhere)."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    finite = (alpha > _ENDS) & (sigma > _ENDS)
    ratio = jnp.where(finite, alpha, 1.0) / jnp.where(finite, sigma, 1.0)
    return jnp.log(ratio), finite


def ancestral_std(path: Path, t: Array, s: Array) -> Array:
    """Standard deviation of ``x_s`` given ``x_t`` and ``x0``, ``s <= t``."""
    shrink = path.alpha(t) * path.sigma(s) / guard(path.alpha(s) * path.sigma(t))
    return path.sigma(s) * jnp.sqrt(jnp.maximum(1.0 - shrink**2, 0.0))


@dataclasses.dataclass(frozen=True)
class SDE:
    """Ancestral sampling; times must fall.

    ``zeta^2 = eta^2 sigma_s^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)`` of the
    noise is fresh; 1 is DDPM's posterior, 0 is DDIM.

    Attributes:
      eta: share of fresh noise, in ``[0, 1]``.
    """

    eta: float = 1.0
    order = 1
    kind = "x0"
    noisy = True

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")

    def evaluations(self, steps: int) -> int:
        return _evaluations(steps)

    def step(self, ode: Equation, at: Step) -> tuple[Array, Last]:
        denoised, _ = ode.pair(at.x, at.t)
        zeta = self.eta * ancestral_std(ode.path, at.t, at.s)
        moved = ode.path.step(at.x, denoised, at.t, at.s, ode.y, zeta, at.noise)
        return moved, at.last


def _stacked(times: Sequence[Time] | Array, x: Array, solver: Solver) -> Array:
    if not isinstance(times, jax.Array):
        times = list(times)
    if len(times) < 2:
        raise ValueError(
            f"times must hold a start and an end, got {len(times)} times: 0 steps"
        )
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if isinstance(times, jax.Array):
        return times.astype(dtype)
    if all(isinstance(t, (int, float)) for t in times):
        steps = [b - a for a, b in zip(times[:-1], times[1:], strict=True)]
        rising = all(h > 0 for h in steps)
        if not rising and not all(h < 0 for h in steps):
            raise ValueError(f"times must all fall, or all rise (inversion): {times}")
        if rising and solver.noisy:
            raise ValueError(
                f"times must fall for {type(solver).__name__} (it adds noise): {times}"
            )
    return jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(t, dtype) for t in times)))


@overload
def solve(
    *args: Any, trajectory: Literal[True], **options: Any
) -> tuple[Array, Array]: ...


@overload
def solve(*args: Any, **options: Any) -> Array: ...


def folded(key: Array, index: Array | int) -> Array:
    """A key, or one key per sample ``[B]``, folded with a number."""
    fold = jax.random.fold_in
    return jax.vmap(fold, (0, None))(key, index) if key.ndim else fold(key, index)


def fresh_noise(key: Array, index: Array | int, x: Array) -> Array:
    """Standard normal numbers of the shape of ``x`` for one of several steps.

    Args:
      key: one key for the whole batch; or one per sample, ``[B]``, so that a sample's
        noise does not depend on the batch that it is in.
      index: the step.
      x: states ``[B, ...]``.
    """
    key = folded(key, index)
    if not key.ndim:
        return jax.random.normal(key, x.shape, x.dtype)
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)


def solve(
    field: Field,
    x: Array,
    times: Sequence[Time] | Array,
    *,
    path: Path,
    solver: Solver = Heun(),
    kind: str | Prediction = "velocity",
    key: Array | None = None,
    y: Array | None = None,
    trajectory: bool = False,
) -> Array | tuple[Array, Array]:
    """Follows the ODE (or SDE) of a field through a list of times, one scan.

    Args:
      field: prediction of ``kind`` on ``path``.
      x: state at ``times[0]``, ``[B, ...]``.
      times: ``steps + 1`` times, each a scalar or an array over leading axes of ``x``;
        or one array with them along its first axis.
      path: path of the states and times.
      solver: see the module docstring.
      kind: kind of the field; converted to what the solver works with.
      key: randomness of a noisy solver.
      y: known endpoint of a bridge, shape of ``x``.
      trajectory: also return the states after every step.

    Returns:
      The final state in at least float32, or ``(state, states [steps, B, ...])``.

    Raises:
      ValueError: on fewer than two times, numbers that turn around, an unknown kind, or
        a missing key.

    Gradient flow: through field, state, times and ``y``.
    """
    t = _stacked(times, x, solver)
    if solver.noisy and key is None:
        raise ValueError(f"{type(solver).__name__} draws noise: pass key=")
    ode = Equation(field, path, kind_of(kind), y)
    x = x.astype(t.dtype)

    def one(carry: tuple[Array, Last], inputs: tuple[Array, Array, Array]):
        x, last = carry
        index, now, after = inputs
        noise = None
        if solver.noisy and key is not None:
            noise = fresh_noise(key, index, x)
        found = solver.step(ode, Step(x, now, after, last, noise))
        carry = jax.tree.map(lambda new, old: new.astype(old.dtype), found, carry)
        return carry, (carry[0] if trajectory else None)

    primed = getattr(solver, "primed", False)
    found = ode.velocity(x, t[0]).astype(x.dtype) if primed else jnp.zeros_like(x)
    start = (x, Last(t[0], found))
    steps = jnp.arange(t.shape[0] - 1)
    (x, _), states = jax.lax.scan(one, start, (steps, t[:-1], t[1:]))
    return x if states is None else (x, states)
