"""Latent adversarial diffusion distillation (LADD)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import Denoised, Guidance
from distilljax.core.method import Citation, Method, Role, Sampling, Term, check
from distilljax.diffusion.clocks import CLOCK_GRID
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import Grid, Law, LogNormal, Schedule
from distilljax.methods.gan import feature_roles, fool, judged, tell_apart
from distilljax.methods.parts import (
    TEACHER,
    noised,
    path_of,
    student_draws,
    telling,
    twin_phases,
)
from distilljax.methods.registry import register

Array = jax.Array

LADD = Citation(
    "ladd",
    "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion "
    "Distillation",
    "Sauer, Boesel, Dockhorn, Blattmann, Esser, Rombach",
    2024,
    "arXiv:2403.12015",
)


@register(
    family="adversarial",
    cite=LADD,
    summary="discriminator heads on the frozen teacher's features, no score gap",
)
def ladd(
    *,
    steps: int = 4,
    grid: Grid = CLOCK_GRID,
    shares: tuple[float, ...] | None = None,
    draw: Callable[[Context], Any] | None = None,
    law: Law = LogNormal(1.0, 1.0),
    hinge: bool = True,
    misaligned: bool = False,
    scales: Guidance | None = None,
    critic_weight: Schedule = 1.0,
    r1_weight: Schedule = 0.0,
    r1_std: float = 0.1,
    r1_clean: bool = False,
    critic_steps: int = 1,
    told_start: bool = False,
    path: Path | None = None,
) -> Method:
    """LADD: the student fools heads on the frozen teacher's features, nothing else.

    Student ``x = f(x_t, t, 0)`` from noised data at the start times of ``grid``;
    ``-logit`` of the re-noised ``x``. Discriminator ``relu(1 + logit(fake)) + relu(1 -
    logit(real))``: heads on the taps of the teacher, which sees both re-noised at times
    of their own. The data are the teacher's own guided samples in the paper, so that
    guidance needs no place in the loss; real data serve as well.

    There is no release of the authors. NVlabs/FastGen's variant takes the
    non-saturating loss (``hinge=False``), five updates in which the discriminator has
    four (``critic_steps=4``), and an approximate R1 penalty whose noise it adds to the
    clean sample while telling the network the time of the noised one
    (``r1_clean=True``, weight 100 to 1000); by default it goes to the re-noised sample,
    and the penalty is divided by ``r1_std^2``, so that it estimates ``|grad logit|^2``.

    Args:
      steps: number of steps of the sampler that the student shall serve.
      grid: its time grid; by default even steps of the network's clock, on an EDM path
        of the index into Karras's table.
      shares: probability of each start time in training, from noise to data; default
        equal. One-step quality wants most of it on the first.
      draw: how the student's samples are made in place of these three: a draw such as
        `draws.Jump`, whose times follow a law.
      law: times of the discriminator; where they lie settles whether structure (noisy)
        or texture is judged. The paper's ``t = sigmoid(N(1, 1))`` of the linear path is
        ``log(sigma/alpha) ~ N(1, 1)``, which is taken on every path.
      hinge: hinge losses; otherwise the non-saturating pair.
      misaligned: whether data under a neighbour's condition counts as fake; it couples
        the samples of a batch, which forbids accumulation.
      scales: guidance scales that the student is told, see `scm`; None tells none.
      critic_weight: weight of the discriminator's loss; SANA-Sprint halves it.
      r1_weight: weight of the penalty; the number 0 leaves it out.
      r1_std: perturbation of the penalty.
      r1_clean: whether the penalty is FastGen's: ``(logit(x0 + r1_std n, t) -
        logit(x_t, t))^2`` without division, the moved clean sample shown at the time of
        the noised one.
      critic_steps: discriminator updates per student update; on small problems one
        diverges, and four with ``r1_weight`` 0.1 do not.
      told_start: whether the discriminator is told the time from which the student's
        sample was made, as its second time, and holds the data of a place in the batch
        against the sample of that place; one that is not judges the samples of all
        steps as one mixture, whose parts can make up for each other. Not of the paper.
      path: path; default the student's network's.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, teacher, discriminator.
    """
    tell = telling(scales)
    made, needs = student_draws(
        draw or Denoised(steps, grid, shares, path=path), told_start
    )
    deceive, detect = (
        (losses.generator_hinge, losses.discriminator_hinge)
        if hinge
        else (losses.generator_nonsaturating, losses.discriminator_nonsaturating)
    )

    def penalty(ctx: Context) -> Array:
        p, x0 = path_of(ctx, path), ctx.data["x0"]
        x_t, t, _ = noised(ctx, x0, law, p)
        moved = (x0 if r1_clean else x_t) + r1_std * ctx.normal("perturbation", x_t)
        found, perturbed = (judged(ctx, x, t, p, "teacher")[1] for x in (x_t, moved))
        return losses.approximate_r1(found, perturbed, 1.0 if r1_clean else r1_std)

    terms = (tell_apart(law, path, critic_weight, detect, "teacher", misaligned),)
    if not (isinstance(r1_weight, (int, float)) and r1_weight == 0):
        terms += (Term("r1", penalty, r1_weight),)
    return check(
        Method(
            name="ladd",
            roles=feature_roles(
                {"student": Role(needs=tell.needs), "teacher": TEACHER},
                "teacher",
                needs,
                kind="patches",
            ),
            phases=twin_phases(
                terms,
                (fool(law, path, 1.0, deceive, "teacher"),),
                {**tell.draws, **made},
                critic_steps,
                trains=("discriminator",),
            ),
            sampling=Sampling(
                grid,
                Consistency(),
                path,
                two_time=False,
                guidance=tell.default,
                steps=steps,
            ),
            cite=(LADD,),
        )
    )
