"""Score identity distillation (SiD)."""

from __future__ import annotations

import jax

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import Rollout
from distilljax.core.method import Citation, Method, Sampling, Term, check
from distilljax.diffusion.clocks import ByPath, KarrasUniform, Timesteps
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import Grid, Law, LogNormal, Uniform, central
from distilljax.methods.fits import Fit, fit_score
from distilljax.methods.parts import (
    BELOW_NOISE,
    guidance_needs,
    noised,
    path_of,
    student_draws,
    twin_phases,
    twin_predictions,
    twin_roles,
)
from distilljax.methods.registry import register

Array = jax.Array

SID = Citation(
    "sid",
    "Score identity Distillation",
    "Zhou, Zheng, Wang, Yin, Huang",
    2024,
    "arXiv:2404.04057",
    "eq. 23, Algorithm 1",
)

SID_LSG = Citation(
    "sid_lsg",
    "Long and Short Guidance in Score identity Distillation for One-Step Text-to-Image "
    "Generation",
    "Zhou, Wang, Zheng, Huang",
    2024,
    "arXiv:2406.01561",
)

# SiD's: continuous places up to 0.8 of Karras's ramp against EDM's own law for the fake
# score; SiD-LSG's timesteps 20 to 979 for both.
_LSG_TIMES = Timesteps(0.02, 0.979)

SID_TIMES = ByPath(
    central(0.02), edm=KarrasUniform(0.0, 0.8, points=None), vp=_LSG_TIMES
)

SID_FIT_TIMES = ByPath(Uniform(), edm=LogNormal(-1.2, 1.2), vp=_LSG_TIMES)


@register(
    family="distribution matching",
    cite=SID,
    summary="Fisher divergence by score identities, data-free",
)
def sid(
    *,
    alpha: float = 1.2,
    law: Law = SID_TIMES,
    critic_law: Law = SID_FIT_TIMES,
    fit: Fit = Fit(),
    guidance: float = 1.0,
    fake_guidance: float = 1.0,
    critic_steps: int = 1,
    steps: tuple[int, ...] = (1,),
    grid: Grid = BELOW_NOISE,
    floor: float | None = None,
    told_start: bool = False,
    path: Path | None = None,
) -> Method:
    """SiD: Fisher divergence by score identities, gradient through both networks.

    ``<D_real - D_fake, (D_real - x) - alpha (D_real - D_fake)>`` over
    ``mean |x - D_real|`` (eq. 23), see `losses.fisher`. The releases are
    mingyuanzhou/SiD for EDM networks, which multiplies the sum over elements by 100
    where this is the mean, and mingyuanzhou/SiD-LSG for Stable Diffusion, whose long
    and short guidance is ``sid(alpha=1.0, guidance=2.0, fake_guidance=2.0,
    fit=Fit(guidance=2.0))``.

    Args:
      alpha: 1.2 in the paper; 1/2 is the exact Fisher gradient, 1 is SIM and SiD-LSG.
      law: times of the loss; by default uniform over the lower 0.8 of Karras's ramp on
        an EDM path (the release's ``tmax = 800``), timesteps 20 to 979 of 1000 on a VP
        path, 0.02 to 0.98 of the clock elsewhere.
      critic_law: times at which the fake score is fitted; ``log sigma ~ N(-1.2,
        1.2^2)`` on an EDM path, timesteps 20 to 979 on a VP path.
      fit: prediction, path, weight and guidance of that fit (``kappa_1`` of SiD-LSG).
      guidance: scale ``w`` of the teacher, ``kappa_4`` of SiD-LSG.
      fake_guidance: scale of the fake score in the loss, ``kappa_2 = kappa_3``.
      critic_steps: critic updates per student update; 1 in the paper, 4 on small
        problems, where 2 are too few.
      steps: numbers of steps that the student shall serve; the paper's is one.
      grid: their time grids, by default from ``sigma/alpha = 2.5`` on, the paper's
        ``sigma_init``. From pure noise a student that begins as the teacher makes all
        samples near the mean of the data, and where modes lie far apart all of them end
        in few: on the bench's mixture in 64 dimensions one step ends at 111 times the
        floor from there and at 35 from the default.
      floor: see `dmd2`.
      told_start: see `dmd2`.
      path: path; default the student's network's.

    Returns:
      The method. Data-free (``cond`` only). Roles: student, teacher, fake_score.
    """
    draws, needs = student_draws(Rollout(steps, grid, path), told_start)

    def identities(ctx: Context) -> Array:
        p = path_of(ctx, path)
        x = ctx.data["x"]
        x_t, t, _ = noised(ctx, x, law, p)
        real, fake = twin_predictions(ctx, x_t, t, p, guidance, fake_guidance)
        return losses.fisher(x, real, fake, alpha=alpha, floor=floor)

    fitting = fit_score("fake_score", "x", critic_law, path, fit=fit)
    needs |= guidance_needs(fake_guidance) | guidance_needs(fit.guidance)
    return check(
        Method(
            name="sid",
            roles=twin_roles(guidance=guidance, fake_needs=needs),
            phases=twin_phases(
                (fitting,), (Term("fisher", identities),), draws, critic_steps
            ),
            batch=frozenset(),
            sampling=Sampling(
                grid, Consistency(), path, two_time=False, steps=max(steps)
            ),
            cite=(SID,) if fake_guidance == 1 else (SID, SID_LSG),
        )
    )
