"""Continuous-time consistency (sCM) by the tangent of the map."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from distilljax import losses
from distilljax.core.binding import told
from distilljax.core.context import Context
from distilljax.core.draws import Guidance
from distilljax.core.method import (
    Citation,
    Method,
    Out,
    Phase,
    Role,
    Sampling,
    Term,
    check,
)
from distilljax.diffusion.paths import Path, trigflow
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import (
    Grid,
    Law,
    LogNormal,
    PathGrid,
    Ramp,
    Schedule,
    value_at,
)
from distilljax.losses import transforms
from distilljax.losses.corrections import Correction
from distilljax.losses.trajectory import Derivative, exact
from distilljax.methods.parts import (
    TEACHER,
    dropped,
    guidance_needs,
    noised,
    per_sample_norm,
    prior_weight,
    scale_of,
    telling,
)
from distilljax.methods.registry import register

SCM = Citation(
    "scm",
    "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models",
    "Lu, Song",
    2024,
    "arXiv:2410.11081",
    "eq. 8, Algorithm 1",
)


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
