"""f-distill: the score gap weighted for any f-divergence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.method import Citation, Method, Out, Term, check
from distilljax.diffusion.clocks import CLOCK_GRID, ByPath, KarrasUniform
from distilljax.diffusion.paths import Path
from distilljax.diffusion.times import Grid, Law, Schedule, Uniform, central
from distilljax.losses import transforms
from distilljax.losses.divergences import Divergence, divergence_of
from distilljax.methods.fits import Fit
from distilljax.methods.gan import judged
from distilljax.methods.matching.dmd2 import DMD2, dmd2
from distilljax.methods.parts import (
    RatioMeans,
    binned_means,
    noised,
    path_of,
    twin_predictions,
)
from distilljax.methods.registry import register

sg = jax.lax.stop_gradient

F_DISTILL = Citation(
    "f_distill",
    "One-step Diffusion Models with f-Divergence Distribution Matching",
    "Xu, Nie, Vahdat",
    2025,
    "arXiv:2502.15681",
    "eq. 8",
)

# FastGen's times for f-distill: one law for gap, fake score and GAN.
_POLYNOMIAL = KarrasUniform(0.002, 0.998)

_GAP_TIMES = ByPath(central(0.02), edm=_POLYNOMIAL, vp=Uniform(0.001, 0.999))

_ALL_TIMES = ByPath(Uniform(), edm=_POLYNOMIAL, vp=Uniform(0.001, 0.999))


@register(
    family="distribution matching",
    cite=F_DISTILL,
    summary="score gap weighted for any f-divergence by a discriminator's ratio",
)
def f_distill(
    *,
    divergence: str | Divergence = "js",
    bins: int = 10,
    decay: float = 0.5,
    ratio_clip: tuple[float, float] = (0.1, 20.0),
    steps: tuple[int, ...] = (1,),
    grid: Grid = CLOCK_GRID,
    law: Law = _GAP_TIMES,
    critic_law: Law = _ALL_TIMES,
    fit: Fit = Fit(),
    guidance: float = 1.0,
    critic_steps: int = 5,
    gan_weight: Schedule = 3e-3,
    gan_critic_weight: Schedule = 1e-2,
    gan_law: Law = _ALL_TIMES,
    features: str = "fake_score",
    floor: float | None = None,
    told_start: bool = False,
    path: Path | None = None,
) -> Method:
    """f-distill: DMD2 whose gap is weighted for any f-divergence.

    ``regress(h(r)/mean h(r) gap / mean|x - D_real|) + gan_weight softplus(-logit)``
    with ``h(r) = r^2 f''(r)`` (eq. 8) and ``r = exp(logit)`` of DMD2's discriminator at
    the very point of the gap. As in the released code ``r`` is clipped and divided by
    its running mean over samples of like time. Reverse KL (``rkl``) is `dmd2`; a
    constant factor of ``f`` does not matter.

    The released code (NVlabs/FastGen) reads the discriminator from the frozen teacher's
    features (``features="teacher"``) and draws one point for gap and GAN; here the GAN
    draws its own, as in `dmd2`. The times are its: indices 2 to 998 of Karras's table
    on an EDM path, 0.001 to 0.999 of the clock on a VP path, for gap, fit and GAN.

    Args:
      divergence: name in `losses.DIVERGENCES`, ``rkl fkl jf js sf sh ney chi2``, or one
        such as `losses.skew`.
      bins: equal bins of the clock for the mean of the ratio; 0 does without.
      decay: of the running means over updates; 0 takes those of the batch.
      ratio_clip: smallest and largest ratio.
      steps: see `dmd2`.
      grid: see `dmd2`.
      law: see `dmd2`.
      critic_law: see `dmd2`.
      fit: see `dmd2`.
      guidance: see `dmd2`.
      critic_steps: see `dmd2`.
      gan_weight: weight of the generator's GAN term, 0.003 in the ImageNet recipe.
      gan_critic_weight: see `dmd2`.
      gan_law: see `dmd2`; must reach wherever ``law`` does.
      features: ``fake_score`` or ``teacher``, on whose features the discriminator sits.
      floor: see `dmd2`.
      told_start: see `dmd2`.
      path: see `dmd2`.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, teacher, fake_score,
      discriminator. Memory: ``ratio_means``, the bins. The weight couples the samples
      of a batch.
    """
    h = divergence_of(divergence).h
    if isinstance(gan_weight, (int, float)) and gan_weight == 0:
        raise ValueError(
            "gan_weight must not be the number 0: the weight needs the discriminator; "
            "use dmd2(gan_weight=0) for reverse KL without one"
        )
    if features not in ("fake_score", "teacher"):
        raise ValueError(
            "features must be 'fake_score' or 'teacher', from which a discriminator "
            f"reads the density ratio of noised samples, got {features!r}"
        )
    base = dmd2(
        steps=steps,
        grid=grid,
        law=law,
        critic_law=critic_law,
        fit=fit,
        guidance=guidance,
        critic_steps=critic_steps,
        gan_weight=gan_weight,
        gan_critic_weight=gan_critic_weight,
        gan_law=gan_law,
        features=features,
        floor=floor,
        told_start=told_start,
        path=path,
    )

    def match(ctx: Context) -> Out:
        p, x = path_of(ctx, path), ctx.data["x"]
        x_t, t, _ = noised(ctx, sg(x), law, p)
        # One evaluation gives both, unless features and gap are not told alike.
        if features == "fake_score" and not told_start:
            real = ctx.nets.teacher.guided(ctx.data, guidance, path=p)(x_t, t)
            fake, logits = judged(ctx, x_t, t, p)
        else:
            real, fake = twin_predictions(ctx, x_t, t, p, guidance)
            logits = judged(ctx, x_t, t, p, features)[1]
        logits = jnp.mean(logits.reshape(logits.shape[0], -1), axis=1)
        memory, expected = {}, 1.0
        if bins:
            ratio = transforms.density_ratio(logits, *ratio_clip)
            new, expected = binned_means(
                ctx.memory["ratio_means"], ratio, t / p.t_max, decay
            )
            memory = {"ratio_means": new}
        c = losses.score_gap(x, real, fake)
        c = transforms.normalize_by_error(c, reference=real, floor=floor)
        c = transforms.weight_by_density_ratio(c, logits, h, expected, clip=ratio_clip)
        return Out(losses.regress(c), {"largest_weight": jnp.max(c.weight)}, memory)

    critic, student = base.phases
    student = student._replace(
        terms=(Term("match", match, coupled=True), *student.terms[1:])
    )
    return check(
        base._replace(
            name="f_distill",
            phases=(critic, student),
            memory=RatioMeans(bins) if bins else None,
            cite=(F_DISTILL, DMD2),
        )
    )
