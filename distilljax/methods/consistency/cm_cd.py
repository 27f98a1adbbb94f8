"""Consistency distillation: neighbours on a teacher's trajectory agree at the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.method import (
    Citation,
    Follow,
    Method,
    Phase,
    Role,
    Sampling,
    Term,
    check,
)
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.solvers import Heun, Solver, solve
from distilljax.diffusion.times import Grid, KarrasPoints, PathGrid, Schedule
from distilljax.losses import transforms
from distilljax.losses.metrics import Metric, half_mse
from distilljax.methods.parts import TEACHER, guidance_needs, path_of
from distilljax.methods.registry import register
from distilljax.methods.weights import LevelWeight, constant, noise_ratio
from distilljax.runtime.axes import looked_up

Array = jax.Array

CM_CD = Citation(
    "cm_cd",
    "Consistency Models",
    "Song, Dhariwal, Chen, Sutskever",
    2023,
    "arXiv:2303.01469",
    "eq. 7, Algorithm 2",
)


@register(
    family="consistency",
    cite=CM_CD,
    summary="neighbouring points of one teacher trajectory map to one x0",
)
def cm_cd(
    *,
    segments: int = 17,
    grid: Grid = KarrasPoints(),
    solver: Solver = Heun(),
    metric: Metric = half_mse,
    weight: LevelWeight = constant,
    guidance: float = 1.0,
    target_decay: Schedule = 0.0,
    path: Path | None = None,
    boundary: float | None = None,
    sampling_grid: Grid = PathGrid(),
) -> Method:
    """Consistency distillation: neighbouring points of one ODE trajectory agree.

    ``d(f(x_t, t), sg f^-(x_tau, tau))`` with ``x_tau`` one step of the teacher's ODE
    from ``x_t`` to the next time of the grid (eq. 7). Student and target share their
    dropout; the teacher evaluates.

    Args:
      segments: number of grid segments, ``N - 1`` for the ``N`` points of the paper (18
        on CIFAR-10, 40 on ImageNet-64).
      grid: the times that bound the segments; the paper's are Karras with rho 7 from 80
        to ``sigma_min``.
      solver: ODE solver of the teacher's step; Heun in the paper.
      metric: ``d``; the paper prefers LPIPS, see `metrics.FeatureMetric`.
      weight: of the distance, see `distilljax.methods.weights`.
      guidance: scale ``w`` of the teacher.
      target_decay: EMA decay ``mu`` of the target network; 0 copies, as the released
        JAX code of CIFAR-10 does; 0.95 in the paper's table for ImageNet-64.
      path: path; default the teacher's network's.
      boundary: time at which the map is the identity, see `AffineFlowMap`. None is
        ``sigma_min`` on EDM, as in the paper, and the data elsewhere.
      sampling_grid: times of the sampler.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, teacher, target.
    """

    def agree(ctx: Context) -> Array:
        p = path_of(ctx, path, "teacher")
        times = jnp.asarray(grid(segments, p))
        index = ctx.integers("index", segments)
        t, tau = looked_up(times, index), looked_up(times, index + 1)
        x_t = p.noise(ctx.data["x0"], ctx.normal("eps"), t)
        kind = ctx.nets.teacher.kind
        field = ctx.nets.teacher.guided(ctx.data, guidance, kind=kind, path=p)
        x_tau = solve(field, x_t, [t, tau], path=p, solver=solver, kind=kind)
        identity = p.boundary if boundary is None else boundary
        f, f_target = (
            net.flow_map(ctx.cond, path=p, two_time=False, boundary=identity)
            for net in (ctx.nets.student, ctx.nets.target.like(ctx.nets.student))
        )
        c = losses.consistency(f, f_target, x_t, t, x_tau, tau, identity)
        w = weight(noise_ratio(p, t), noise_ratio(p, tau), p.sigma_d)
        return losses.regress(transforms.scale(c, w), metric)

    return check(
        Method(
            name="cm_cd",
            roles={
                "student": Role(),
                "teacher": TEACHER._replace(needs=guidance_needs(guidance)),
                "target": Role(init="student", follow=Follow("student", target_decay)),
            },
            phases=(Phase("student", ("student",), (Term("agree", agree),)),),
            sampling=Sampling(
                sampling_grid, Consistency(), path, two_time=False, boundary=boundary
            ),
            cite=(CM_CD,),
        )
    )
