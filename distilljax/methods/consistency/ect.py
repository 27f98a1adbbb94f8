"""Easy consistency tuning (ECT)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax.core.context import Context
from distilljax.core.method import Citation, Method, Sampling
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import (
    Grid,
    Law,
    LogNormal,
    PathGrid,
    Schedule,
    value_at,
)
from distilljax.losses.metrics import Metric, norm
from distilljax.methods.consistency._training import Neighbours, _method, shared_noise
from distilljax.methods.curricula import Shrink
from distilljax.methods.registry import register
from distilljax.methods.weights import LevelWeight, inverse_gap, noise_ratio

ECT = Citation(
    "ect",
    "Consistency Models Made Easy",
    "Geng, Pokle, Luo, Lin, Kolter",
    2024,
    "arXiv:2406.14548",
)


@register(
    family="consistency",
    cite=ECT,
    summary="a diffusion model tuned into a consistency model by shrinking gaps",
    teacher=False,
)
def ect(
    *,
    gap: Schedule = Shrink(400_000),
    law: Law = LogNormal(-1.1, 2.0),
    k: float = 8.0,
    b: float = 1.0,
    metric: Metric = norm,
    weight: LevelWeight = inverse_gap,
    floor: float = 0.0,
    init: str = "teacher",
    path: Path | None = None,
    sampling_grid: Grid = PathGrid(levels=((0.821,),)),
) -> Method:
    """Easy consistency tuning: a diffusion model whose target time moves up from 0.

    ``|f(x_t, t) - sg f(x_tau, tau)| / (t - tau)`` with ``tau = max(0, t (1 - n(t)
    gap))``, ``n(t) = 1 + k sigmoid(-b t)``: at a gap of 1 the target is ``x0``, the
    diffusion loss; as it shrinks, a consistency loss.

    Args:
      gap: ``q^-(a + 1)`` in stage ``a`` over cycles.
      law: law of ``t``; -0.8, 1.6 on ImageNet.
      k: how much wider gaps are at low noise; 0 is the release's ``adj="const"``.
      b: noise level over which that fades.
      metric: `metrics.norm` (CIFAR-10) or `metrics.PseudoHuberVector` (0.06 on
        ImageNet).
      weight: `inverse_gap` or `inverse_output_scale`, or another of
        `distilljax.methods.weights`.
      floor: noise level at and below which a target is the data itself. The release
        asks its network at every level above 0.
      init: ``teacher`` starts from a diffusion model.
      path: path; default the student's network's. ``t`` and ``tau`` above are noise
        levels ``sigma/alpha`` on every path.
      sampling_grid: times of the sampler; the release's second level is 0.821.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student.
    """

    def pairs(ctx: Context, p: Path) -> Neighbours:
        t = ctx.times("t", law, p)
        ratio = noise_ratio(p, t)
        wide = (1.0 + k * jax.nn.sigmoid(-b * ratio)) * value_at(gap, ctx.step)
        below = ratio * (1.0 - wide)
        below = jnp.where(below <= floor, 0.0, below)
        tau = p.time_of_ratio(below)
        return Neighbours(t, tau, weight(ratio, below, p.sigma_d))

    return _method(
        "ect",
        shared_noise(pairs, metric, None, path, 0.0),
        (ECT,),
        Sampling(sampling_grid, Consistency(), path, two_time=False),
        init,
    )
