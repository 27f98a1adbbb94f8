"""DMD: the normalised score gap and a regression to noise-image pairs."""

from __future__ import annotations

import jax

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import TeacherTrajectory, Trajectory
from distilljax.core.method import Citation, Method, Term, check
from distilljax.diffusion.clocks import CLOCK_GRID
from distilljax.diffusion.paths import Path
from distilljax.diffusion.times import Grid, Law, Schedule
from distilljax.losses.metrics import Metric, half_mse
from distilljax.methods.fits import Fit
from distilljax.methods.matching._gap import ALL_TIMES, GAP_TIMES
from distilljax.methods.matching.dmd2 import dmd2
from distilljax.methods.parts import path_of
from distilljax.methods.registry import register

Array = jax.Array

DMD = Citation(
    "dmd",
    "One-step Diffusion with Distribution Matching Distillation",
    "Yin, Gharbi, Zhang, Shechtman, Durand, Freeman, Park",
    2023,
    "arXiv:2311.18828",
    "eq. 7, 8 and the regression to noise-image pairs",
)


@register(
    family="distribution matching",
    cite=DMD,
    summary="normalised score gap and regression to noise-image pairs",
)
def dmd(
    *,
    regression_weight: Schedule = 0.25,
    metric: Metric = half_mse,
    pairs: Trajectory | None = None,
    law: Law = GAP_TIMES,
    critic_law: Law = ALL_TIMES,
    fit: Fit = Fit(),
    guidance: float = 1.0,
    critic_steps: int = 1,
    floor: float | None = None,
    grid: Grid = CLOCK_GRID,
    path: Path | None = None,
) -> Method:
    """DMD: normalised score gap plus regression to noise-image pairs of the teacher.

    ``regress(gap / mean|x - D_real|) + regression_weight d(G(z), y)`` where ``y`` is
    the end of the teacher's deterministic trajectory from ``z``. The pairs keep the
    modes that the reverse KL divergence drops. Without them and with five critic
    updates it is `dmd2` without its GAN.

    Args:
      regression_weight: weight of the regression, 0.25 in the paper; the number 0
        leaves it and the pairs out.
      metric: ``d``; the paper's is LPIPS: `metrics.FeatureMetric` of its features.
      pairs: how the teacher makes the pairs anew in every update; default 16 Heun
        steps under ``guidance``. The paper makes them once, beforehand: `StoredPairs`
        takes those from the batch.
      law: times of the gap, see `dmd2`.
      critic_law: times at which the fake score is fitted.
      fit: see `dmd2`.
      guidance: scale ``w`` of the teacher.
      critic_steps: critic updates per student update.
      floor: see `dmd2`.
      grid: its first time is where generation starts.
      path: path; default the student's network's.

    Returns:
      The method. Batch: ``cond``, and ``eps`` and ``x0`` of stored pairs. Roles:
      student, teacher, fake_score.
    """
    matching = dmd2(
        steps=(1,),
        grid=grid,
        law=law,
        critic_law=critic_law,
        fit=fit,
        guidance=guidance,
        critic_steps=critic_steps,
        gan_weight=0,
        floor=floor,
        path=path,
    )._replace(name="dmd", cite=(DMD,))
    if isinstance(regression_weight, (int, float)) and regression_weight == 0:
        return matching
    draw = pairs or TeacherTrajectory(1, 16, grid, guidance=guidance, path=path)

    def reach(ctx: Context) -> Array:
        found = ctx.data["pairs"]
        z, t, y = found["states"][0], found["times"][0], found["end"]
        f = ctx.nets.student.flow_map(ctx.cond, path=path_of(ctx, path), two_time=False)
        return losses.regress(losses.toward(f(z, t, 0.0), y), metric)

    critic, student = matching.phases
    student = student._replace(
        terms=(*student.terms, Term("reach", reach, regression_weight)),
        draws={**student.draws, "pairs": draw},
    )
    return check(matching._replace(phases=(critic, student), batch=draw.fields))
