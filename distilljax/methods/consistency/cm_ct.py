"""Consistency training: neighbours on noised data agree, without a teacher."""

from __future__ import annotations

import jax.numpy as jnp

from distilljax.core.context import Context
from distilljax.core.method import Citation, Follow, Method, Role, Sampling
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import (
    Grid,
    GrowingGrid,
    KarrasPoints,
    PathGrid,
    Schedule,
    value_at,
)
from distilljax.losses.metrics import Metric, half_mse
from distilljax.methods.consistency._training import Neighbours, _method, shared_noise
from distilljax.methods.curricula import RootSegments, SegmentDecay
from distilljax.methods.registry import register
from distilljax.methods.weights import LevelWeight, constant, noise_ratio

CM_CT = Citation(
    "cm_ct",
    "Consistency Models",
    "Song, Dhariwal, Chen, Sutskever",
    2023,
    "arXiv:2303.01469",
    "eq. 10, Algorithm 3",
)


@register(
    family="consistency",
    cite=CM_CT,
    summary="neighbouring levels of one data point map to one x0, without a teacher",
    teacher=False,
)
def cm_ct(
    *,
    segments: Schedule = RootSegments(),
    grid: GrowingGrid = KarrasPoints(),
    metric: Metric = half_mse,
    weight: LevelWeight = constant,
    target_decay: Schedule | None = None,
    init: str = "random",
    path: Path | None = None,
    boundary: float | None = None,
    sampling_grid: Grid = PathGrid(),
) -> Method:
    """Consistency training: neighbouring noise levels of one ``(x0, eps)`` agree.

    ``d(f(x0 + t eps, t), sg f^-(x0 + tau eps, tau))`` (eq. 10); `cm_cd` with the data
    in place of the teacher's denoiser and Euler's step.

    Args:
      segments: number of grid segments over cycles, ``N(k) - 1`` of the paper.
      grid: the times that bound the segments; the paper's are Karras with rho 7 from 80
        to ``sigma_min``.
      metric: ``d``; the paper prefers LPIPS, see `metrics.FeatureMetric`.
      weight: of the distance, see `distilljax.methods.weights`.
      target_decay: EMA decay ``mu`` of the target network; None is the paper's ``exp(s0
        log(0.9) / segments)``, made for long runs; 0 copies, which suits short ones.
      init: ``random``, or ``teacher`` to start from a diffusion model.
      path: path; default the student's network's.
      boundary: time at which the map is the identity, see `cm_cd`.
      sampling_grid: times of the sampler.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, target.
    """

    def pairs(ctx: Context, p: Path) -> Neighbours:
        count = value_at(segments, ctx.step).astype(jnp.int32)
        index = ctx.integers("index", count)
        t, tau = grid.at(index, count, p), grid.at(index + 1, count, p)
        levels = noise_ratio(p, t), noise_ratio(p, tau)
        return Neighbours(t, tau, weight(*levels, p.sigma_d))

    decay = SegmentDecay(segments) if target_decay is None else target_decay
    return _method(
        "cm_ct",
        shared_noise(pairs, metric, "target", path, boundary),
        (CM_CT,),
        Sampling(sampling_grid, Consistency(), path, two_time=False, boundary=boundary),
        init,
        target=Role(init="student", follow=Follow("student", decay)),
    )
