"""Improved consistency training (iCT)."""

from __future__ import annotations

from distilljax.core.context import Context
from distilljax.core.method import Citation, Method, Sampling
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import Grid, KarrasGrid, PathGrid, Schedule, value_at
from distilljax.losses.metrics import Metric
from distilljax.methods.consistency._training import (
    Neighbours,
    _method,
    log_normal_segment,
    shared_noise,
)
from distilljax.methods.curricula import DoublingSegments
from distilljax.methods.registry import register
from distilljax.methods.weights import LevelWeight, inverse_gap

ICT = Citation(
    "ict",
    "Improved Techniques for Training Consistency Models",
    "Song, Dhariwal",
    2023,
    "arXiv:2310.14189",
)


@register(
    family="consistency",
    cite=ICT,
    summary="consistency training on itself, pseudo-Huber, doubling segments",
    teacher=False,
)
def ict(
    *,
    segments: Schedule = DoublingSegments(),
    grid: KarrasGrid = KarrasGrid(),
    mean: float = -1.1,
    std: float = 2.0,
    metric: Metric | None = None,
    weight: LevelWeight = inverse_gap,
    init: str = "random",
    path: Path | None = None,
    boundary: float | None = None,
    sampling_grid: Grid = PathGrid(levels=((0.821,),)),
) -> Method:
    """Improved consistency training: no target EMA, pseudo-Huber, log-normal levels.

    ``(sqrt(|f - sg f'|^2 + c^2) - c) / (t_{i+1} - t_i)`` with ``c = 0.00054 sqrt(D)``,
    ``f'`` the student itself, and segment ``i`` drawn with the mass that ``log sigma ~
    N(mean, std^2)`` has in it. The grid's last level before 0 is the lowest.

    A public reimplementation takes the pseudo-Huber per element and sums; the paper's
    is the vector form, as here.

    Args:
      segments: number of segments over cycles, doubling.
      grid: Karras grid of noise levels.
      mean: of the law of ``log(sigma/alpha)``.
      std: of that law.
      metric: another metric than the pseudo-Huber.
      weight: of the distance, see `distilljax.methods.weights`.
      init: ``random``, or ``teacher`` to start from a diffusion model.
      path: path; default the student's network's. Segments and weights are those of the
        noise levels ``sigma/alpha`` on every path.
      boundary: time at which the map is the identity, see `cm_cd`.
      sampling_grid: times of the sampler; the paper's second level is 0.821 (CIFAR-10)
        or 1.526.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student.
    """

    def pairs(ctx: Context, p: Path) -> Neighbours:
        count = value_at(segments, ctx.step)
        index = log_normal_segment(ctx.uniform("level"), grid, count, mean, std)
        ratio, below = (grid.ratio(index + i, count + 1.0) for i in (0.0, 1.0))
        t, tau = p.time_of_ratio(ratio), p.time_of_ratio(below)
        return Neighbours(t, tau, weight(ratio, below, p.sigma_d))

    return _method(
        "ict",
        shared_noise(pairs, metric, None, path, boundary),
        (ICT,),
        Sampling(sampling_grid, Consistency(), path, two_time=False, boundary=boundary),
        init,
    )
