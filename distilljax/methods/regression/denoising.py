"""Any kind of prediction regressed on data and noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.diffusion.paths import Path, guard
from distilljax.diffusion.predictions import kind_of, recompose
from distilljax.diffusion.sampler import Deterministic
from distilljax.diffusion.times import Law, LogitNormal
from distilljax.losses import transforms
from distilljax.methods.parts import dropped, guidance_needs, noised, path_of
from distilljax.methods.registry import register

Array = jax.Array

DENOISING = Citation(
    "denoising",
    "Denoising Diffusion Probabilistic Models",
    "Ho, Jain, Abbeel",
    2020,
    "arXiv:2006.11239",
    "eq. 14",
)


@register(
    family="regression",
    cite=DENOISING,
    summary="any prediction (x0, eps, v, ...) regressed on data and noise; teachers",
    teacher=False,
    makes="teacher",
)
def denoising(
    *,
    kind: str | None = None,
    law: Law = LogitNormal(),
    min_snr: float | None = None,
    label_dropout: float = 0.0,
    path: Path | None = None,
) -> Method:
    """Denoising: a prediction of any kind regressed on that of data and noise.

    ``E |p(x_t, t, c) - (a x0 + b eps)|^2 / 2`` with the ``(a, b)`` of the kind: x0,
    eps (DDPM's simple loss), v, velocity (`flow_matching`) or F (EDM's weighting). All
    kinds have one optimum and differ by a weight in time.

    Args:
      kind: kind of prediction whose error counts; default the network's own.
      law: training times.
      min_snr: ``gamma`` of the weight ``min(alpha^2/sigma^2, gamma)`` of the x0 error
        (Hang et al. 2023, arXiv:2303.09556, 5 there), the same loss for every kind;
        None for weight 1 on the kind's own error.
      label_dropout: share of samples with the null condition, for guidance later.
      path: path; default the student's network's.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, from random weights.

    Raises:
      ValueError: on an unknown kind.
    """
    wanted = None if kind is None else kind_of(kind)

    def match(ctx: Context) -> Array:
        p, student = path_of(ctx, path), ctx.nets.student
        chosen = student.kind if wanted is None else wanted
        x0 = ctx.data["x0"]
        x_t, t, eps = noised(ctx, x0, law, p)
        cond, _ = dropped(ctx, student, label_dropout)
        out = student.prediction(cond, kind=chosen, path=p)(x_t, t)
        c = losses.toward(out, recompose(p, chosen, x0, eps, t))
        if min_snr is not None:
            ratio = p.alpha(t) / guard(p.sigma(t))
            a, b = chosen.pair(p, t)
            # An error d of X is one of (a - b ratio) d in a X + b E.
            per_error = guard(a - b * ratio) ** 2
            c = transforms.scale(c, jnp.minimum(ratio**2, min_snr) / per_error)
        return losses.regress(c)

    needs = guidance_needs(1.0 if label_dropout == 0 else 0.0)
    return check(
        Method(
            name="denoising",
            roles={"student": Role(init="random", needs=needs)},
            phases=(Phase("student", ("student",), (Term("match", match),)),),
            sampling=Sampling(
                renoise=Deterministic(), path=path, two_time=False, steps=16
            ),
            cite=(DENOISING,),
        )
    )
