"""What the methods on noised data share: neighbours that share their noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.diffusion.paths import Path
from distilljax.diffusion.times import KarrasGrid
from distilljax.losses import transforms
from distilljax.losses.metrics import Metric, PseudoHuberVector
from distilljax.methods.parts import path_of
from distilljax.runtime.axes import untyped

Array = jax.Array


class Neighbours(NamedTuple):
    """Two times of one trajectory and how much their agreement counts, ``[B]`` each."""

    t: Array
    tau: Array
    weight: Array


Pairs = Callable[[Context, Path], Neighbours]


def log_normal_segment(
    u: Array, grid: KarrasGrid, count: Array | int, mean: float, std: float
) -> Array:
    """Segment of a grid in proportion to its mass under ``log sigma ~ N(mean, std^2)``.

    Args:
      u: uniform numbers in [0, 1).
      grid: its ``count + 1`` levels above 0 bound the segments.
      count: number of segments.
      mean: of the law of the log level.
      std: of that law.

    Returns:
      Indices ``0 .. count - 1`` as floats, 0 the noisiest; shape of ``u``.
    """
    low, high = (
        0.5 * math.erfc((mean - math.log(level)) / (std * math.sqrt(2.0)))
        for level in (grid.sigma_min, grid.sigma_max)
    )
    share = low + (high - low) * u
    normal = untyped(jax.scipy.special.ndtri, share)(share)
    level = jnp.exp(mean + std * normal)
    return jnp.clip(jnp.floor(grid.index(level, count + 1.0)), 0.0, count - 1.0)


def shared_noise(
    pairs: Pairs,
    metric: Metric | None,
    target: str | None,
    path: Path | None,
    boundary: float | None,
) -> Callable[[Context], Array]:
    """Term ``w d(f(x_t, t), sg f'(x_tau, tau))``, both noised with the same noise.

    Args:
      pairs: draws the times.
      metric: ``d``; None is iCT's `metrics.PseudoHuberVector` of the data's size.
      target: role of ``f'``; None is the student itself.
      path: path; default the student's network's.
      boundary: see `AffineFlowMap`; None is the path's.
    """

    def agree(ctx: Context) -> Array:
        p, x0 = path_of(ctx, path), ctx.data["x0"]
        identity = p.boundary if boundary is None else boundary
        found = pairs(ctx, p)
        eps = ctx.normal("eps")
        student = ctx.nets.student
        other = student.detached() if target is None else ctx.nets[target]
        f, f_target = (
            net.flow_map(ctx.cond, path=p, two_time=False, boundary=identity)
            for net in (student, other.like(student))
        )
        x_t, x_tau = (p.noise(x0, eps, time) for time in (found.t, found.tau))
        c = losses.consistency(f, f_target, x_t, found.t, x_tau, found.tau, identity)
        width = 0.00054 * math.sqrt(math.prod(x0.shape[1:]))
        used = PseudoHuberVector(width) if metric is None else metric
        return losses.regress(transforms.scale(c, found.weight), used)

    return agree


def _method(
    name: str,
    agree: Callable[[Context], Array],
    cite: tuple[Citation, ...],
    sampling: Sampling,
    init: str,
    **roles: Role,
) -> Method:
    return check(
        Method(
            name=name,
            roles={"student": Role(init=init), **roles},
            phases=(Phase("student", ("student",), (Term("agree", agree),)),),
            sampling=sampling,
            cite=cite,
        )
    )
