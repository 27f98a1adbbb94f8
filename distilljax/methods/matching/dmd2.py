"""DMD2: the gap of two scores, a GAN and backward simulation."""

from __future__ import annotations

import functools
import operator

import jax

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import Rollout, TeacherTrajectory, Trajectory
from distilljax.core.method import Citation, Method, Phase, Sampling, Stage, Term, check
from distilljax.diffusion.clocks import CLOCK_GRID
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import Cycles, Grid, Law, Product, Schedule
from distilljax.methods.fits import Fit, fit_score
from distilljax.methods.gan import feature_roles, fool, tell_apart
from distilljax.methods.matching._gap import ALL_TIMES, GAP_TIMES, match_scores
from distilljax.methods.parts import (
    guidance_needs,
    path_of,
    student_draws,
    twin_phases,
    twin_roles,
)
from distilljax.methods.registry import register

Array = jax.Array


DMD2 = Citation(
    "dmd2",
    "Improved Distribution Matching Distillation for Fast Image Synthesis",
    "Yin, Gharbi, Park, Zhang, Shechtman, Durand, Freeman",
    2024,
    "arXiv:2405.14867",
    "sections 4.2 to 4.4; gap and normaliser: eq. 7, 8 of arXiv:2311.18828",
)


@register(
    family="distribution matching",
    cite=DMD2,
    summary="score gap of teacher and fake score, GAN, backward simulation",
)
def dmd2(
    *,
    steps: tuple[int, ...] = (1, 2, 4),
    grid: Grid = CLOCK_GRID,
    law: Law = GAP_TIMES,
    critic_law: Law = ALL_TIMES,
    fit: Fit = Fit(),
    guidance: float = 1.0,
    critic_steps: int = 5,
    gan_weight: Schedule = 1e-3,
    gan_critic_weight: Schedule = 1e-2,
    gan_law: Law = ALL_TIMES,
    features: str | None = "fake_score",
    warm_start: Cycles = 0,
    warm_start_draw: Trajectory | None = None,
    warm_start_weights: tuple[float, ...] | None = None,
    floor: float | None = None,
    slots: tuple[int, ...] | None = None,
    rollout_law: Law | None = None,
    told_start: bool = False,
    path: Path | None = None,
    sampling_grid: Grid | None = None,
) -> Method:
    """DMD2: score gap of teacher and fake score, GAN, backward simulation, TTUR.

    Student: ``regress(gap / mean|x - D_real|) + gan_weight softplus(-logit)`` on
    samples of its own rollout. Critic (``critic_steps`` a cycle): the fake score is
    fitted to detached samples, ``|p_psi - p*|^2 + gan_critic_weight (softplus(fake) +
    softplus(-real))``, and the discriminator's loss on its features also trains it.

    The numbers are those of the release (tianweiy/DMD2) for the network at hand: times,
    grids and the fit differ between EDM and Stable Diffusion there, see `clocks.ByPath`
    and `fits.Fit`.

    Args:
      steps: numbers of steps that one student shall serve.
      grid: their time grids; by default even steps of the network's clock, on an EDM
        path of the index into Karras's table.
      law: times of the gap; by default indices 20 to 980 of 1000 on EDM and VP paths,
        0.02 to 0.98 of the clock elsewhere.
      critic_law: times at which the fake score is fitted, the full range.
      fit: prediction, path and weight of that fit.
      guidance: scale ``w`` of the teacher; the fake score is never guided.
      critic_steps: critic updates per student update.
      gan_weight: weight of the generator's GAN term in units of `regress` (the mean
        over elements); the number 0 leaves the GAN out.
      gan_critic_weight: weight of the discriminator's loss beside the mean square of
        the fit. The term ``fit`` is half of that square, so that the discriminator's
        term has half of this weight.
      gan_law: times of the diffusion GAN, for real and fake independently.
      features: role on whose features the discriminator sits, see `ctm`; on the fake
        score (the paper's) its loss trains that too, on ``teacher`` heads alone.
      warm_start: cycles of plain regression on the teacher's trajectories before
        matching begins (the released SDXL recipe starts its one-step student on
        noise-image pairs).
      warm_start_draw: those trajectories; default the grid of the most ``steps``, two
        Heun steps a segment. `StoredPairs` and `StoredTrajectory` take them from the
        batch, whose ``x0`` is then the teacher's, for the GAN too.
      warm_start_weights: weight of their states; default equal.
      floor: smallest divisor of the normaliser ``mean |x - D_real|``; by default it
        falls with the number of elements, see `transforms.error_size`.
      slots: see `draws.Rollout`; None draws one exit step for the whole batch.
      rollout_law: law of the rollout's times in place of ``grid``'s, see
        `draws.Rollout`; None takes the grid.
      told_start: whether the fake score is told the time from which a sample was made,
        as its second time, so that it fits the samples of every step by themselves; one
        that is not fits their mixture, and where the first steps spread too far the
        last learns to spread too little. The discriminator is told likewise, the
        features that it sees are not. Not of the paper; `tdm` has the like.
      path: path; default the student's network's.
      sampling_grid: times of the sampler; default ``grid``. The student is a function
        of a continuous time, so that other times between the trained ones can do
        better.

    Returns:
      The method. Batch: ``cond``; with the GAN also ``x0``. Roles: student, teacher,
      fake_score, discriminator.
    """
    gan = not (isinstance(gan_weight, (int, float)) and gan_weight == 0)
    rollout = Rollout(steps, grid, path, slots=slots, law=rollout_law)
    draws, needs = student_draws(rollout, told_start)

    def match(ctx: Context) -> Array:
        return losses.regress(match_scores(ctx, law, path, guidance, floor))

    student_terms = (Term("match", match),)
    critic_terms = (fit_score("fake_score", "x", critic_law, path, fit=fit),)
    needs_of_fake = needs | guidance_needs(fit.guidance)
    roles = twin_roles(guidance=guidance, fake_needs=needs_of_fake)
    trains = ("fake_score",)
    if gan:
        student_terms += (fool(gan_law, path, gan_weight, trunk=features),)
        # The fit is half of the mean square beside which the release has the weight.
        apart = Product(0.5, gan_critic_weight)
        critic_terms += (tell_apart(gan_law, path, apart, trunk=features),)
        roles = feature_roles(roles, features, needs, kind="bottleneck")
        trains += ("discriminator",)
    stages, fields = (), frozenset({"x0"} if gan else ())
    if warm_start:
        draw = warm_start_draw or TeacherTrajectory(
            max(steps), grid=grid, guidance=guidance, path=path
        )
        weights = warm_start_weights or (1.0,) * draw.segments
        stages = (Stage(warm_start, (follow_teacher(draw, weights),)),)
        fields |= draw.fields
    return check(
        Method(
            name="dmd2",
            roles=roles,
            phases=twin_phases(
                critic_terms, student_terms, draws, critic_steps, trains=trains
            ),
            batch=fields,
            sampling=Sampling(
                sampling_grid or grid,
                Consistency(),
                path,
                two_time=False,
                steps=max(steps),
            ),
            stages=stages,
            cite=(DMD2,),
        )
    )


def follow_teacher(draw: Trajectory, weights: tuple[float, ...]) -> Phase:
    """Phase that regresses ``f(x_t, t, 0)`` on the end of the teacher's trajectory.

    Args:
      draw: the trajectory; every state of it is used.
      weights: weight of the states, one per segment.

    Returns:
      A phase ``student`` with one term.
    """
    if len(weights) != draw.segments:
        raise ValueError(
            f"weights must hold one number per segment ({draw.segments}), got {weights}"
        )

    def regress_ends(ctx: Context) -> Array:
        found = ctx.data["trajectory"]
        p = path_of(ctx, draw.path)
        f = ctx.nets.student.flow_map(ctx.cond, path=p, two_time=False)
        values = [
            weight * losses.regress(losses.toward(f(x, t, 0.0), found["end"]))
            for x, t, weight in zip(
                found["states"], found["times"], weights, strict=True
            )
        ]
        return functools.reduce(operator.add, values) / sum(weights)

    term = Term("trajectory_end", regress_ends)
    return Phase("student", ("student",), (term,), {"trajectory": draw})
