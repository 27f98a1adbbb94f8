"""Diff-Instruct: the gradient of the integral KL divergence."""

from __future__ import annotations

import jax

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import Rollout
from distilljax.core.method import Citation, Method, Sampling, Term, check
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import Grid, Law, LogNormal
from distilljax.methods.fits import Fit, fit_score
from distilljax.methods.parts import (
    BELOW_NOISE,
    guidance_needs,
    noised,
    path_of,
    twin_phases,
    twin_predictions,
    twin_roles,
)
from distilljax.methods.registry import register

Array = jax.Array
sg = jax.lax.stop_gradient

DIFF_INSTRUCT = Citation(
    "diff_instruct",
    "Diff-Instruct: A Universal Approach for Transferring Knowledge From Pre-trained "
    "Diffusion Models",
    "Luo, Hu, Zhang, Sun, Li, Zhang",
    2023,
    "arXiv:2305.18455",
    "integral KL divergence and its gradient",
)


@register(
    family="distribution matching",
    cite=DIFF_INSTRUCT,
    summary="gradient of the integral KL divergence, data-free",
)
def diff_instruct(
    *,
    law: Law = LogNormal(-1.2, 1.2),
    critic_law: Law = LogNormal(-1.2, 1.2),
    fit: Fit = Fit(),
    guidance: float = 1.0,
    critic_steps: int = 1,
    grid: Grid = BELOW_NOISE,
    path: Path | None = None,
) -> Method:
    """Diff-Instruct: the gradient of the integral KL divergence, without a normaliser.

    ``grad = E[(D_fake - D_real)(x_t) dx/dtheta]``. The divergence ``int w KL(q_t |
    p_t)`` has the weight ``w alpha^2 / sigma^2`` on this gap; the released code leaves
    it out, which is ``w = sigma^2 / alpha^2``, and so does this.

    Args:
      law: times of the gap; the released ``log sigma ~ N(-1.2, 1.2^2)``, whose data
        have standard deviation 0.5.
      critic_law: times at which the fake score is fitted.
      fit: prediction, path and weight of that fit, see `fits.Fit`.
      guidance: scale ``w`` of the teacher.
      critic_steps: critic updates per student update.
      grid: its first time is where generation starts, by default at ``sigma/alpha =
        2.5`` (the released EDM students at 1 to 5). From pure noise (``EvenGrid()``)
        all samples end in one mode on the bench's mixture in 64 dimensions, see `sid`.
      path: path; default the student's network's.

    Returns:
      The method. Data-free (``cond`` only). Roles: student, teacher, fake_score.
    """
    draws = {"x": Rollout((1,), grid, path)}

    def match(ctx: Context) -> Array:
        p, x = path_of(ctx, path), ctx.data["x"]
        x_t, t, _ = noised(ctx, sg(x), law, p)
        real, fake = twin_predictions(ctx, x_t, t, p, guidance)
        return losses.regress(losses.score_gap(x, real, fake))

    fitting = fit_score("fake_score", "x", critic_law, path, fit=fit)
    needs = guidance_needs(fit.guidance)
    return check(
        Method(
            name="diff_instruct",
            roles=twin_roles(guidance=guidance, fake_needs=needs),
            phases=twin_phases(
                (fitting,), (Term("match", match),), draws, critic_steps
            ),
            batch=frozenset(),
            sampling=Sampling(grid, Consistency(), path, two_time=False),
            cite=(DIFF_INSTRUCT,),
        )
    )
