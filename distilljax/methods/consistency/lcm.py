"""Latent consistency models: consistency distillation of guided teachers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import Guidance
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
from distilljax.diffusion.solvers import DDIM, Solver, solve
from distilljax.diffusion.times import Grid, PathGrid, Schedule
from distilljax.losses.metrics import Metric, PseudoHuberElement
from distilljax.methods.consistency._to_data import _to_data
from distilljax.methods.parts import TEACHER, guidance_needs, path_of, scale_of, telling
from distilljax.methods.registry import register
from distilljax.runtime.axes import looked_up

Array = jax.Array

LCM = Citation(
    "lcm",
    "Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step "
    "Inference",
    "Luo, Tan, Huang, Li, Zhao",
    2023,
    "arXiv:2310.04378",
    "Algorithm 1",
)


@register(
    family="consistency",
    cite=LCM,
    summary="long steps of the guided teacher, the scale drawn from a range",
)
def lcm(
    *,
    segments: int = 50,
    skip: int = 1,
    grid: Grid = PathGrid(),
    solver: Solver = DDIM(),
    metric: Metric = PseudoHuberElement(0.001),
    guidance: Guidance = (3.0, 15.0),
    embed: bool = False,
    target_decay: Schedule = 0.95,
    end: float | None = None,
    path: Path | None = None,
    sampling_grid: Grid = PathGrid(),
) -> Method:
    """Latent consistency: one long step of the guided ODE, the scale drawn per sample.

    ``d(f(x_t, t), sg f^-(x_tau, tau))`` with ``x_tau`` one DDIM step of the teacher
    guided by ``w`` over ``skip`` segments of the grid; the 20 of 1000 training times of
    the paper are one segment of 50. Its ``c_skip`` and ``c_out`` are 0 and 1 to 1e-5
    from the first grid time up, and 1 and 0 at the end, where the target is the state.

    The paper writes guidance as ``cond + w' (cond - null)``, ``w = 1 + w'``, and draws
    ``w'`` in [2, 14]; the released script in [5, 15].

    Args:
      segments: number of grid segments.
      skip: segments of one step.
      grid: time grid.
      solver: ODE solver of the teacher's step.
      metric: ``d``.
      guidance: scale ``w`` of the teacher, or several of which every sample draws one:
        a range ``(low, high)`` or `draws.Among`.
      embed: whether the student is told the scale, which its network must take
        (``guidance=``) and its sampler gives. False with a range learns an average over
        scales (the released LoRA script).
      target_decay: EMA decay of the target network; 0 copies (LoRA).
      end: time at which the last segment ends, whose target is the teacher's state
        there. None is the first time of the path at which a network is asked: 0.001,
        training time 0 of the release, on `paths.vp`. 0 goes on to the data.
      path: path; default the teacher's network's.
      sampling_grid: times of the sampler.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, teacher, target.
    """
    if not 1 <= skip <= segments:
        raise ValueError(f"skip must lie in 1 .. segments = {segments}, got {skip}")

    def agree(ctx: Context) -> Array:
        p = path_of(ctx, path, "teacher")
        times = jnp.asarray(grid(segments, p))
        index = ctx.integers("index", segments)
        after = jnp.minimum(index + skip, segments)
        t, tau = looked_up(times, index), looked_up(times, after)
        last = p.t_min if end is None else end
        tau = jnp.maximum(tau, last)
        x_t = p.noise(ctx.data["x0"], ctx.normal("eps"), t)
        teacher = ctx.nets.teacher
        scale = scale_of(ctx, guidance)
        field = teacher.guided(ctx.data, scale, kind=teacher.kind, path=p)
        x_tau = solve(field, x_t, [t, tau], path=p, solver=solver, kind=teacher.kind)
        f, f_target = (
            _to_data(net.flow_map(ctx.told, path=p, two_time=False))
            for net in (ctx.nets.student, ctx.nets.target.like(ctx.nets.student))
        )
        c = losses.consistency(f, f_target, x_t, t, x_tau, tau, last)
        return losses.regress(c, metric)

    tell = telling(guidance if embed else None)
    follow = Follow("student", target_decay)
    phase = Phase("student", ("student",), (Term("agree", agree),), tell.draws)
    return check(
        Method(
            name="lcm",
            roles={
                "student": Role(needs=tell.needs),
                "teacher": TEACHER._replace(needs=guidance_needs(guidance)),
                "target": Role(init="student", follow=follow, needs=tell.needs),
            },
            phases=(phase,),
            sampling=Sampling(
                sampling_grid,
                Consistency(),
                path,
                two_time=False,
                guidance=tell.default,
                steps=4,
            ),
            cite=(LCM,),
        )
    )
