"""Maps between any two times by derivatives of a teacher's flow: Align Your Flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax import losses
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
from distilljax.diffusion import fields
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Deterministic
from distilljax.diffusion.times import (
    Interval,
    Minimum,
    PairLaw,
    Ramp,
    Schedule,
    value_at,
)
from distilljax.losses import transforms
from distilljax.losses.corrections import Correction
from distilljax.losses.trajectory import Derivative, exact
from distilljax.methods.parts import (
    TEACHER,
    guidance_needs,
    path_of,
    per_sample_norm,
    scale_of,
    telling,
)
from distilljax.methods.registry import register

Array = jax.Array
sg = jax.lax.stop_gradient

AYF_EMD = Citation(
    "ayf_emd",
    "Align Your Flow: Scaling Continuous-Time Flow Map Distillation",
    "Sabour, Fidler, Kreis",
    2025,
    "arXiv:2506.14603",
    "Eulerian map distillation",
)
AYF_LMD = dataclasses.replace(
    AYF_EMD, id="ayf_lmd", equations="Lagrangian map distillation"
)


def _ayf(
    cite: Citation,
    term: Term,
    guidance: Guidance,
    embed: bool,
    autoguidance: bool,
    path: Path | None,
    derivative: Derivative = exact,
) -> Method:
    tell = telling(guidance if embed else None)
    needs = tell.needs | {"second_time"} | ({"jvp"} if derivative is exact else set())
    roles = {"student": Role(needs=needs), "teacher": TEACHER}
    if autoguidance:
        roles["weak_teacher"] = TEACHER
    else:
        roles["teacher"] = TEACHER._replace(needs=guidance_needs(guidance))
    return check(
        Method(
            name=cite.id,
            roles=roles,
            phases=(Phase("student", ("student",), (term,), tell.draws),),
            sampling=Sampling(
                renoise=Deterministic(),
                path=path,
                two_time=True,
                guidance=tell.default,
            ),
            cite=(cite,),
        )
    )


def _ayf_field(
    ctx: Context,
    way: Path,
    guidance: Guidance,
    interval: tuple[float, float] | None,
    autoguidance: bool,
) -> fields.Field:
    """Velocity of the teacher, guided by the null condition or by a weaker model."""
    return ctx.nets.teacher.guided(
        ctx.data,
        scale_of(ctx, guidance),
        kind="velocity",
        path=way,
        interval=interval,
        weak=ctx.nets.weak_teacher if autoguidance else None,
    )


@register(
    family="flow map",
    cite=AYF_EMD,
    summary="a jump's end does not depend on its start; autoguidance",
)
def ayf_emd(
    *,
    law: PairLaw = Interval(),
    guidance: Guidance = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    embed: bool = False,
    autoguidance: bool = False,
    warmup: Schedule = Minimum(0.99, Ramp(10_000)),
    tangent: Callable[[Correction], Correction] | None = transforms.normalize_tangent,
    derivative: Derivative = exact,
    path: Path | None = None,
) -> Method:
    """Align Your Flow, Eulerian: a jump's end must not depend on where it began.

    ``|F - sg(F - g / (|g| + 0.1))|^2`` with, on the linear path,

        g = F - v + r (t - s) dF/dt,

    ``dF/dt`` by one jvp along the teacher's velocity ``v``. It is `mean_flow` with a
    teacher and with sCM's tangent normalisation for the adaptive weight.

    Args:
      law: law of ``(t, s)``; the paper's draws the length of the jump.
      guidance: scale ``w`` of the teacher, or several of which every sample draws one:
        a range ``(low, high)``, ``(1.0, 3.0)`` in the paper, or `draws.Among`.
      guidance_interval: times of ``path`` at which guidance is on.
      embed: whether the student is told the scale (the paper's choice), see `lcm`.
      autoguidance: guides with the role ``weak_teacher``, a weaker model whose
        parameters the user gives, for the null condition (the paper's choice).
      warmup: ratio ``r`` that scales the jvp part, ``min(0.99, k/K)``.
      tangent: transform of the correction, or None.
      derivative: `losses.exact` or `losses.finite_difference(step)`.
      path: path; default the student's network's, linear in the paper.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student with a second time,
      teacher, weak_teacher.
    """

    def eulerian(ctx: Context) -> Out:
        way = path_of(ctx, path)
        t, s = ctx.pair("times", law, way)
        x_t = way.noise(ctx.data["x0"], ctx.normal("eps"), t)
        field = _ayf_field(ctx, way, guidance, guidance_interval, autoguidance)
        c = losses.eulerian(
            ctx.nets.student.flow_map(ctx.told, path=way, two_time=True),
            field(x_t, t),
            x_t,
            t,
            s,
            warmup=value_at(warmup, ctx.step),
            derivative=derivative,
        )
        size = jnp.mean(per_sample_norm(c.direction))
        c = transforms.drop_nonfinite(c)
        c = c if tangent is None else tangent(c)
        return Out(losses.regress(c), {"tangent_norm": size})

    term = Term("eulerian", eulerian)
    return _ayf(AYF_EMD, term, guidance, embed, autoguidance, path, derivative)


@register(
    family="flow map",
    cite=AYF_LMD,
    summary="a jump's end moves with the teacher's velocity at the student's own point",
)
def ayf_lmd(
    *,
    law: PairLaw = Interval(),
    guidance: Guidance = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    embed: bool = False,
    autoguidance: bool = False,
    tangent: Callable[[Correction], Correction] | None = transforms.normalize_tangent,
    path: Path | None = None,
) -> Method:
    """Align Your Flow, Lagrangian: a jump's end moves with the teacher's velocity.

    ``|F - sg(v(f, s) + (t - s) dF/ds)|^2`` on the linear path, with ``f = f(x_t, t,
    s)`` the student's own end point, at which the teacher is asked, and ``dF/ds`` by
    one jvp. The paper found it worse on images than `ayf_emd` (FID 6.70 against 1.70
    at four steps on ImageNet-512).

    Args:
      law: law of ``(t, s)``; the paper's draws the length of the jump.
      guidance: see `ayf_emd`.
      guidance_interval: times of ``path`` at which guidance is on.
      embed: see `ayf_emd`.
      autoguidance: see `ayf_emd`.
      tangent: transform of the correction. The student's end points lie off the data
        at first, where the teacher's velocity grows like ``1/s``: as it is (None) the
        correction of a few samples drowns the others. In 64 dimensions of the bench's
        mixture four steps ended at 6.3 times the floor without it and at 1.5 with it.
      path: path; default the student's network's.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student with a second time,
      teacher, weak_teacher.
    """

    def lagrangian(ctx: Context) -> Array:
        way = path_of(ctx, path)
        t, s = ctx.pair("times", law, way)
        x_t = way.noise(ctx.data["x0"], ctx.normal("eps"), t)
        field = _ayf_field(ctx, way, guidance, guidance_interval, autoguidance)
        student = ctx.nets.student.flow_map(ctx.told, path=way, two_time=True)
        c = transforms.drop_nonfinite(losses.lagrangian(student, field, x_t, t, s))
        return losses.regress(c if tangent is None else tangent(c))

    term = Term("lagrangian", lagrangian)
    return _ayf(AYF_LMD, term, guidance, embed, autoguidance, path)
