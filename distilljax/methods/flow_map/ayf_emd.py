"""Align Your Flow by the Eulerian distance."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import Guidance
from distilljax.core.method import Citation, Method, Out, Term
from distilljax.diffusion.paths import Path
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
from distilljax.methods.flow_map._ayf import _ayf, _ayf_field
from distilljax.methods.parts import path_of, per_sample_norm
from distilljax.methods.registry import register

AYF_EMD = Citation(
    "ayf_emd",
    "Align Your Flow: Scaling Continuous-Time Flow Map Distillation",
    "Sabour, Fidler, Kreis",
    2025,
    "arXiv:2506.14603",
    "Eulerian map distillation",
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
