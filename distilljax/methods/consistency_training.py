"""Discrete consistency on noised data, without a teacher: CT, iCT, ECT."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

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
from distilljax.diffusion.times import (
    Grid,
    GrowingGrid,
    KarrasGrid,
    KarrasPoints,
    Law,
    LogNormal,
    PathGrid,
    Schedule,
    value_at,
)
from distilljax.losses import transforms
from distilljax.losses.metrics import (
    Metric,
    PseudoHuberVector,
    half_mse,
    norm,
)
from distilljax.methods.curricula import (
    DoublingSegments,
    RootSegments,
    SegmentDecay,
    Shrink,
)
from distilljax.methods.parts import path_of
from distilljax.methods.registry import register
from distilljax.methods.weights import (
    LevelWeight,
    constant,
    inverse_gap,
    noise_ratio,
)
from distilljax.methods.weights import (
    inverse_output_scale as inverse_output_scale,
)
from distilljax.runtime.axes import untyped

Array = jax.Array

CM_CT = Citation(
    "cm_ct",
    "Consistency Models",
    "Song, Dhariwal, Chen, Sutskever",
    2023,
    "arXiv:2303.01469",
    "eq. 10, Algorithm 3",
)
ICT = Citation(
    "ict",
    "Improved Techniques for Training Consistency Models",
    "Song, Dhariwal",
    2023,
    "arXiv:2310.14189",
)
ECT = Citation(
    "ect",
    "Consistency Models Made Easy",
    "Geng, Pokle, Luo, Lin, Kolter",
    2024,
    "arXiv:2406.14548",
)


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
