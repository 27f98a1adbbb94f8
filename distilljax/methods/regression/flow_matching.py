"""Flow matching: the velocity regressed on data and noise."""

from __future__ import annotations

import jax

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Deterministic
from distilljax.diffusion.times import Law, LogitNormal
from distilljax.methods.parts import dropped, guidance_needs, noised, path_of
from distilljax.methods.registry import register

Array = jax.Array

FLOW_MATCHING = Citation(
    "flow_matching",
    "Flow Matching for Generative Modeling",
    "Lipman, Chen, Ben-Hamu, Nickel, Le",
    2022,
    "arXiv:2210.02747",
    "eq. 5",
)


@register(
    family="regression",
    cite=FLOW_MATCHING,
    summary="velocity regressed on data and noise; teachers",
    teacher=False,
    makes="teacher",
)
def flow_matching(
    *,
    law: Law = LogitNormal(),
    label_dropout: float = 0.0,
    path: Path | None = None,
) -> Method:
    """Flow matching: the velocity regressed on ``alpha' x0 + sigma' eps``.

    ``E |v(x_t, t, c) - (alpha' x0 + sigma' eps)|^2 / 2`` (eq. 5). Makes teachers; it is
    the diagonal ``s = t`` of every two-time method.

    Args:
      law: training times.
      label_dropout: share of samples with the null condition, for guidance later.
      path: path; default the student's network's.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, from random weights.
    """

    def match(ctx: Context) -> Array:
        p, student = path_of(ctx, path), ctx.nets.student
        x_t, t, eps = noised(ctx, ctx.data["x0"], law, p)
        cond, _ = dropped(ctx, student, label_dropout)
        v = student.velocity(cond, path=p)(x_t, t)
        return losses.regress(losses.toward(v, p.velocity(ctx.data["x0"], eps, t)))

    needs = guidance_needs(1.0 if label_dropout == 0 else 0.0)
    return check(
        Method(
            name="flow_matching",
            roles={"student": Role(init="random", needs=needs)},
            phases=(Phase("student", ("student",), (Term("match", match),)),),
            sampling=Sampling(
                renoise=Deterministic(), path=path, two_time=False, steps=16
            ),
            cite=(FLOW_MATCHING,),
        )
    )
