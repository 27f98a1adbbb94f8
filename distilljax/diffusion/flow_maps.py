"""Flow maps ``(x, t, s) -> x_s``: teacher solvers, oracles and students alike.

A student is mostly affine in its raw output. With ``(X, E)`` the clean sample and noise
that a prediction ``F`` at ``(x, t)`` implies (see `distilljax.predictions`), the map is

    f(x, t, s) = alpha_s X + sigma_s E = a(t, s) x + b(t, s) F(x, t, s).

On the linear path with a velocity this is ``x + (s - t) F``; on TrigFlow it is
``cos(t - s) x - sin(t - s) F`` with ``F`` the velocity (``sigma_d`` times the raw
output); with an x0 prediction it is the DDIM jump; with ``s = 0`` it is the consistency
function with the boundary built in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from distilljax.diffusion.fields import Field
from distilljax.diffusion.paths import Path, Time, expand, guard, trigflow
from distilljax.diffusion.predictions import VELOCITY, F, Prediction, kind_of
from distilljax.diffusion.solvers import Heun, Solver, solve

Array = jax.Array


class FlowMap(Protocol):
    """Anything that carries a state from time ``t`` to time ``s``."""

    def __call__(self, x: Array, t: Time, s: Time) -> Array: ...


def coefficients(
    path: Path, kind: str | Prediction, t: Array, s: Array
) -> tuple[Array, Array]:
    """``(a, b)`` of ``f = a x + b F``, elementwise.

    ``a = (alpha_s b_t - sigma_s a_t) / det``, ``b = (sigma_s alpha_t - alpha_s sigma_t)
    / det`` with the kind's ``(a_t, b_t)`` and ``det = alpha_t b_t - sigma_t a_t``.

    Args:
      path: path of the times.
      kind: kind of ``F``.
      t: start times.
      s: end times, shape of ``t``.

    Returns:
      ``(a, b)``, shape of ``t``. At ``s = t`` they are 1 and 0.
    """
    a_t, b_t = kind_of(kind).pair(path, t)
    alpha_t, sigma_t = path.alpha(t), path.sigma(t)
    alpha_s, sigma_s = path.alpha(s), path.sigma(s)
    det = guard(alpha_t * b_t - sigma_t * a_t)
    return (
        (alpha_s * b_t - sigma_s * a_t) / det,
        (sigma_s * alpha_t - alpha_s * sigma_t) / det,
    )


@dataclasses.dataclass(frozen=True)
class AffineFlowMap:
    """``f(x, t, s) = a(t, s) x + b(t, s) F(x, t, s)``.

    Attributes:
      output: network output ``F(x, t, s)`` with parameters and condition bound.
      path: path of the state and the times.
      kind: kind of the output.
      boundary: time at which ``f`` is the identity for ``s = 0``; consistency models on
        the EDM path set it to ``sigma_min`` (c_skip and c_out of Song et al. 2023, eq.
        5 with their appendix C).
    """

    output: Callable[[Array, Time, Time], Array]
    path: Path
    kind: Prediction = VELOCITY
    boundary: float = 0.0

    def coefficients(self, t: Array, s: Array) -> tuple[Array, Array]:
        """``(a, b)`` for expanded times; see `coefficients`."""
        if not self.boundary:
            return coefficients(self.path, self.kind, t, s)
        if not (self.path.exploding and self.kind is F):
            raise ValueError(
                f"boundary={self.boundary} is that of consistency models on EDM; this "
                f"map of {self.kind.name!r} on {self.path} is the identity at 0 "
                "already: leave boundary out"
            )
        sd, shifted = self.path.sigma_d, t - self.boundary
        skip = sd**2 / (shifted**2 + sd**2)
        # F on EDM is minus EDM's raw output, hence the sign of c_out.
        return skip, -sd * shifted / jnp.sqrt(t**2 + sd**2)

    def tangent_scale(self, t: Array, s: Array) -> Array:
        """Factor that makes ``df/dt`` a bounded direction on the output.

        1 for a velocity (at ``s = t`` the direction is then ``v - F``); ``cos t`` on
        TrigFlow (sCM, 2024, the ``1/(sigma_d tan t)`` prior weight); for an ``F``
        output ``cos(theta) / (n_s theta')`` with ``theta = arctan(sigma/(sigma_d
        alpha))`` and ``n_s = path.scale(s)``: TrigFlow's direction on any path.
        """
        if self.path == trigflow(self.path.sigma_d):
            unit = jnp.cos(t)
        elif self.kind is F:
            angle, rate = jax.jvp(self._angle, (t,), (jnp.ones_like(t),))
            unit = jnp.cos(angle) / guard(rate)
        else:
            return jnp.ones_like(t)
        return unit / self.path.scale(s) if self.kind is F else unit

    def _angle(self, t: Array) -> Array:
        return jnp.arctan2(self.path.sigma(t), self.path.sigma_d * self.path.alpha(t))

    def __call__(self, x: Array, t: Time, s: Time) -> Array:
        """The state at ``s``; see `FlowMap`."""
        a, b = self.coefficients(expand(t, x), expand(s, x))
        return a * x + b * self.output(x, t, s)


@dataclasses.dataclass(frozen=True, eq=False)
class OdeFlowMap:
    """A flow map that solves the ODE of a field; see `ode_flow_map`."""

    field: Field
    path: Path
    steps: int
    solver: Solver
    kind: Prediction
    rho: float = 1.0
    y: Array | None = None

    def __call__(self, x: Array, t: Time, s: Time) -> Array:
        """The state at ``s``, ``steps`` solver steps from ``t``."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        t, s = jnp.asarray(t, dtype), jnp.asarray(s, dtype)
        a, b = (u if self.rho == 1.0 else u ** (1.0 / self.rho) for u in (t, s))
        shares = [i / self.steps for i in range(1, self.steps)]
        inner = [(1.0 - u) * a + u * b for u in shares]
        inner = [u if self.rho == 1.0 else u**self.rho for u in inner]
        out = solve(
            self.field,
            x,
            [t, *inner, s],
            path=self.path,
            solver=self.solver,
            kind=self.kind,
            y=self.y,
        )
        assert isinstance(out, jax.Array)
        return out


def ode_flow_map(
    field: Field,
    path: Path,
    *,
    steps: int = 16,
    solver: Solver = Heun(),
    kind: str | Prediction = "velocity",
    rho: float | None = None,
    y: Array | None = None,
) -> OdeFlowMap:
    """The flow map of a field: ``(x, t, s) -> x_s`` by a solver.

    Args:
      field: prediction of ``kind`` on ``path``.
      path: path of states and times; the map's ``path``.
      steps: solver steps between ``t`` and ``s``, per sample.
      solver: a solver without noise.
      kind: kind of the field.
      rho: steps are equal in ``t^(1/rho)``; None is 7 on EDM and 1, equal in the clock,
        elsewhere.
      y: known endpoint of a bridge.

    Returns:
      The map, times scalars or leading axes of ``x``. Costs
      ``solver.evaluations(steps)`` per call.

    Raises:
      ValueError: on 0 steps or a noisy solver.
    """
    solver.evaluations(steps)
    if solver.noisy:
        raise ValueError(f"a flow map is deterministic: {type(solver).__name__} is not")
    if rho is None:
        rho = 7.0 if path.exploding else 1.0
    return OdeFlowMap(field, path, steps, solver, kind_of(kind), rho, y)
