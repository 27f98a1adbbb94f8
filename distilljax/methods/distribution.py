"""Distribution matching with twin score networks: DMD2, SiD, GDMD."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import Rollout, TeacherTrajectory, Trajectory
from distilljax.core.method import (
    Citation,
    Method,
    Out,
    Phase,
    Role,
    Sampling,
    Stage,
    Term,
    check,
)
from distilljax.diffusion.clocks import CLOCK_GRID, ByPath, KarrasUniform, Timesteps
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import (
    Cycles,
    Grid,
    Law,
    LogNormal,
    Product,
    Schedule,
    Uniform,
    central,
)
from distilljax.losses import transforms
from distilljax.losses.corrections import Correction
from distilljax.methods.fits import Fit, fit_score
from distilljax.methods.parts import (
    BELOW_NOISE,
    feature_roles,
    fool,
    guidance_needs,
    noised,
    path_of,
    student_draws,
    tell_apart,
    twin_phases,
    twin_predictions,
    twin_roles,
)
from distilljax.methods.registry import register

Array = jax.Array
sg = jax.lax.stop_gradient

DMD2 = Citation(
    "dmd2",
    "Improved Distribution Matching Distillation for Fast Image Synthesis",
    "Yin, Gharbi, Park, Zhang, Shechtman, Durand, Freeman",
    2024,
    "arXiv:2405.14867",
    "sections 4.2 to 4.4; gap and normaliser: eq. 7, 8 of arXiv:2311.18828",
)
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
GDMD = Citation(
    "gdmd",
    "Guiding Distribution Matching Distillation with Gradient-Based Reinforcement "
    "Learning",
    "Dong, Guo, Bai, Yuan, Luo, Zou",
    2026,
    "arXiv:2604.19009",
)

# DMD2's times: of 1000 levels or timesteps the indices 20 to 980 for the gap, all for
# fake score and GAN; elsewhere uniform in the clock.
GAP_TIMES = ByPath(
    central(0.02), edm=KarrasUniform(0.02, 0.98), vp=Timesteps(0.02, 0.98)
)
ALL_TIMES = ByPath(Uniform(), edm=KarrasUniform(), vp=Timesteps())
# SiD's: continuous places up to 0.8 of Karras's ramp against EDM's own law for the fake
# score; SiD-LSG's timesteps 20 to 979 for both.
_LSG_TIMES = Timesteps(0.02, 0.979)
SID_TIMES = ByPath(
    central(0.02), edm=KarrasUniform(0.0, 0.8, points=None), vp=_LSG_TIMES
)
SID_FIT_TIMES = ByPath(Uniform(), edm=LogNormal(-1.2, 1.2), vp=_LSG_TIMES)


def match_scores(
    ctx: Context,
    law: Law,
    path: Path | None,
    guidance: float,
    floor: float | None = None,
    suffix: str = "",
) -> Correction:
    """Normalised DMD correction of ``ctx.data["x"]`` at one re-noised point."""
    p = path_of(ctx, path)
    x = ctx.data["x"]
    x_t, t, _ = noised(ctx, sg(x), law, p, suffix)
    real, fake = twin_predictions(ctx, x_t, t, p, guidance)
    gap = losses.score_gap(x, real, fake)
    return transforms.normalize_by_error(gap, reference=real, floor=floor)


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


@register(
    family="reward",
    cite=GDMD,
    summary="a reward sets the pace of score-gap updates; they rest at the teacher's",
)
def gdmd(
    *,
    targets: int = 4,
    strength: float = 1.0,
    matching: float = 1.0,
    advantage_bound: float = 5.0,
    steps: tuple[int, ...] = (1, 2, 4),
    grid: Grid = CLOCK_GRID,
    law: Law = GAP_TIMES,
    critic_law: Law = ALL_TIMES,
    fit: Fit = Fit(),
    guidance: float = 1.0,
    critic_steps: int = 5,
    floor: float | None = None,
    told_start: bool = False,
    path: Path | None = None,
) -> Method:
    """GDMD: a reward scores the *target* of each DMD update and weights that update.

    The student rests at the teacher's law whatever the reward: the reward changes the
    pace of distribution matching, not where it ends. With the default options the
    weight of an update lies in [0.65, 1.35] for four targets.

    For every sample, ``targets`` re-noised points give implicit targets ``y_i = x +
    direction_i``; rewards ``r_i = value(y_i, cond)`` are normalised over the targets of
    a sample, ``A_i = (r_i - mean)/(std + 1e-4)``, ``rho_i = clip(A_i/(2 bound) + 1/2,
    0, 1)``, and the update ``i`` has the weight ``matching + strength (2 rho_i - 1)``.

    Signed or safe is an open question of the paper, which has no official code; a
    reading at second hand says: the decoded target is scored and not the sample,
    targets of one sample differ by time and by snapshot of the fake score and are
    compared with each other, and the clipped advantage weighs a positive against a
    negative velocity policy. With policies mirrored at the current sample, ``x+ = x, x-
    = 2 sg(x) - x``, a reconstruction, that is the signed weight ``2 rho_i - 1``
    (``matching = 0``); the default is the safe form ``2 rho_i``, plain DMD plus it.
    Here all targets of a sample come from one fake score. On Gaussians with exact
    scores and a linear reward, until ``rho`` saturates:

    - The signed part raises the reward of every sample, by ``strength std_i(r_i) /
      bound`` per unit step, whatever the teacher.
    - Both rest at the teacher's law, for every reward.
    - With equal spreads the update is ``gap (matching mean c + strength s std c /
      bound)``, ``c_i > 0`` the factors of the targets and ``s`` the sign of the
      reward's slope along the gap. The safe form therefore always nears the teacher,
      and the reward changes its pace (by a tenth at four targets). The signed form
      alone moves away from the teacher where nearing it costs reward: the teacher's law
      is a point of rest that does not attract. The same happens to the safe form beyond
      a ``strength`` of about 9.

    Signed is sound beside a term that holds the student, safe by itself.

    Args:
      targets: re-noised points per sample, at least 2.
      strength: share of the reward in the weight.
      matching: share of plain distribution matching in the weight.
      advantage_bound: advantage at which the weight saturates.
      steps: see `dmd2`.
      grid: see `dmd2`.
      law: see `dmd2`.
      critic_law: see `dmd2`.
      fit: see `dmd2`.
      guidance: see `dmd2`.
      critic_steps: see `dmd2`.
      floor: see `dmd2`.
      told_start: see `dmd2`.
      path: see `dmd2`.

    Returns:
      The method. Data-free (``cond`` only). Roles: student, teacher, fake_score, reward
      (a network with the function ``value(params, x, cond) -> [B]``).
    """
    if targets < 2:
        raise ValueError(
            f"targets must be at least 2, since rewards are compared within a sample; "
            f"got {targets}"
        )
    draws, needs = student_draws(Rollout(steps, grid, path), told_start)

    def rewarded(ctx: Context) -> Out:
        gaps = [
            match_scores(ctx, law, path, guidance, floor, suffix=str(i))
            for i in range(targets)
        ]
        value = ctx.nets.reward.call
        scores = sg(jnp.stack([value("value", c.target, ctx.cond) for c in gaps]))
        if scores.shape[1:] != gaps[0].target.shape[:1]:
            raise ValueError(
                "a reward gives one number for each sample, value(params, x, cond) -> "
                f"[{len(gaps[0].target)}], got {list(scores.shape[1:])}"
            )
        spread = jnp.std(scores, axis=0)
        advantages = (scores - jnp.mean(scores, axis=0)) / (spread + 1e-4)
        weighted = [
            transforms.weight_by_reward(
                c, a, bound=advantage_bound, strength=strength, base=matching
            )
            for c, a in zip(gaps, advantages, strict=True)
        ]
        values = [losses.regress(c) for c in weighted]
        return Out(
            functools.reduce(operator.add, values) / targets,
            {"reward": jnp.mean(scores), "reward_spread": jnp.mean(spread)},
        )

    fitting = fit_score("fake_score", "x", critic_law, path, fit=fit)
    return check(
        Method(
            name="gdmd",
            roles=twin_roles(
                guidance=guidance,
                fake_needs=needs | guidance_needs(fit.guidance),
                reward=Role("reward", init="given"),
            ),
            phases=twin_phases(
                (fitting,), (Term("rewarded", rewarded),), draws, critic_steps
            ),
            batch=frozenset(),
            sampling=Sampling(
                grid, Consistency(), path, two_time=False, steps=max(steps)
            ),
            cite=(GDMD, DMD2),
        )
    )
