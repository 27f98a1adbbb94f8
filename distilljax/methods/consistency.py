"""Consistency models: maps to ``t = 0``, discrete and continuous in time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.binding import told
from distilljax.core.context import Context
from distilljax.core.draws import Guidance
from distilljax.core.method import (
    Citation,
    Follow,
    Method,
    Out,
    Phase,
    Role,
    Sampling,
    Term,
    check,
)
from distilljax.diffusion.flow_maps import FlowMap
from distilljax.diffusion.paths import Path, Time, trigflow
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.solvers import DDIM, Heun, Solver, solve
from distilljax.diffusion.times import (
    Grid,
    KarrasPoints,
    Law,
    LogNormal,
    PathGrid,
    Ramp,
    Schedule,
    value_at,
)
from distilljax.losses import transforms
from distilljax.losses.corrections import Correction
from distilljax.losses.metrics import Metric, PseudoHuberElement, half_mse
from distilljax.losses.trajectory import Derivative, exact
from distilljax.methods.parts import (
    TEACHER,
    dropped,
    guidance_needs,
    noised,
    path_of,
    per_sample_norm,
    prior_weight,
    scale_of,
    telling,
)
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
SCM = Citation(
    "scm",
    "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models",
    "Lu, Song",
    2024,
    "arXiv:2410.11081",
    "eq. 8, Algorithm 1",
)
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


def _to_data(f: FlowMap) -> FlowMap:
    """The consistency function of a map, whatever end time it is called with."""

    def to_data(x: Array, t: Time, s: Time) -> Array:
        return f(x, t, 0.0)

    return to_data


@register(
    family="consistency",
    cite=SCM,
    summary="continuous-time consistency on TrigFlow by one jvp, distilled or trained",
)
def scm(
    *,
    law: Law = LogNormal(-1.0, 1.4),
    guidance: Guidance = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    embed: bool = False,
    teacher: bool = True,
    warmup: Schedule = Ramp(10_000),
    state_only: bool = False,
    tangent: Callable[[Correction], Correction] | None = transforms.normalize_tangent,
    learned_weight: bool = True,
    prior: bool | None = None,
    prior_path: Path | None = None,
    derivative: Derivative = exact,
    label_dropout: float = 0.0,
    path: Path = trigflow(),
    sampling_grid: Grid = PathGrid(),
) -> Method:
    """sCM: continuous-time consistency on TrigFlow, distilled (scd) or trained (sct).

    With ``g = cos t df/dt`` from one jvp along the velocity ``v`` (see
    `losses.eulerian`), ``e^{w(t)} |F - sg(F + g/(|g| + 0.1))|^2 / (2 D) - w(t)``
    (eq. 8).

    Args:
      law: times; the paper's ``log(sigma_d tan t) ~ N(-1, 1.4^2)``.
      guidance: scale ``w`` of the teacher, or several of which every sample draws one:
        a range ``(low, high)`` or `draws.Among`.
      guidance_interval: times of ``path`` at which guidance is on.
      embed: whether the student is told the scale, see `lcm`.
      teacher: True distils a teacher (scd); False takes the velocity of the data (sct),
        and the student still starts from a diffusion model under ``init="teacher"``.
      warmup: ratio in [0, 1] over cycles that scales the tangent beyond flow matching.
      state_only: whether it scales the explicit derivative alone and not the jvp, as
        rCM's released code does, see `losses.eulerian`.
      tangent: transform of the correction: `transforms.normalize_tangent` (with its
        constant and norm), `transforms.clip`, or None for the plain tangent.
      learned_weight: adds the role ``log_weight``; off is wiser on small problems,
        where the weight runs away (see `losses.learned_weight`).
      prior: the factor ``1/(sigma_d tan t)`` outside ``g`` that three public codes
        (FastGen, Sana, TBCM) have and the paper does not; with the learned weight any
        such factor cancels at its optimum. None: on together with the learned weight.
      prior_path: path whose ``1/sigma`` that factor is, at the same noise level. None
        is EDM's, ``1/(sigma_d tan t)``; FastGen takes the network's own, which on a
        linear path is ``1/t``.
      derivative: `losses.exact` or `losses.finite_difference(step)`.
      label_dropout: share of null conditions in the student's pass (sct).
      path: TrigFlow with the ``sigma_d`` wanted; other paths work likewise.
      sampling_grid: times of the sampler; the paper's second time is 1.1.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, teacher (scd),
      log_weight.
    """

    def tangents(ctx: Context) -> Out:
        student = ctx.nets.student
        x0 = ctx.data["x0"]
        x_t, t, eps = noised(ctx, x0, law, path)
        if teacher:
            v = ctx.nets.teacher.guided(
                ctx.data,
                scale_of(ctx, guidance),
                kind="velocity",
                path=path,
                interval=guidance_interval,
            )(x_t, t)
        else:
            v = path.velocity(x0, eps, t)
        cond = told(dropped(ctx, student, label_dropout)[0], ctx.data.get("guidance"))
        f = student.flow_map(cond, path=path, two_time=False)
        kappa = value_at(warmup, ctx.step)
        c = losses.eulerian(
            f, v, x_t, t, warmup=kappa, state_only=state_only, derivative=derivative
        )
        size = per_sample_norm(c.direction)
        c = transforms.drop_nonfinite(c)
        if tangent is not None:
            c = tangent(c)
        values = losses.regress(c)
        if learned_weight if prior is None else prior:
            values = prior_weight(path, t, prior_path) * values
        if learned_weight:
            log_weight = ctx.nets.log_weight.call("log_weight", t)
            values = losses.learned_weight(values, log_weight)
        return Out(values, {"tangent_norm": jnp.mean(size), "warmup": kappa})

    if embed and not teacher:
        raise ValueError(
            "embed=True tells the student the scale of its teacher's guidance, got "
            "teacher=False; leave one of them out"
        )
    tell = telling(guidance if embed else None)
    needs = ({"jvp"} if derivative is exact else set()) | (
        {"null"} if label_dropout else set()
    )
    roles = {"student": Role(needs=tell.needs | needs)}
    trains = ("student",)
    if teacher:
        roles["teacher"] = TEACHER._replace(needs=guidance_needs(guidance))
    if learned_weight:
        roles["log_weight"] = Role("log_weight", init="random")
        trains += ("log_weight",)
    return check(
        Method(
            name="scm",
            roles=roles,
            phases=(
                Phase("student", trains, (Term("tangent", tangents),), tell.draws),
            ),
            sampling=Sampling(
                sampling_grid,
                Consistency(),
                path,
                two_time=False,
                guidance=tell.default,
            ),
            cite=(SCM,),
        )
    )
