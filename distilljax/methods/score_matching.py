"""Score gaps beyond DMD2: Diff-Instruct, DMD, f-distill, trajectory matching."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import OdeRollout, Rollout, TeacherTrajectory, Trajectory
from distilljax.core.method import Citation, Method, Out, Sampling, Term, check
from distilljax.diffusion.clocks import CLOCK_GRID, ByPath, KarrasSteps, KarrasUniform
from distilljax.diffusion.fields import Field
from distilljax.diffusion.paths import Path
from distilljax.diffusion.predictions import VELOCITY, X0, convert, decompose
from distilljax.diffusion.sampler import Consistency, Deterministic
from distilljax.diffusion.times import (
    EvenGrid,
    Grid,
    Law,
    LogNormal,
    Schedule,
    Uniform,
    central,
)
from distilljax.losses import transforms
from distilljax.losses.divergences import Divergence, divergence_of
from distilljax.losses.metrics import Metric, PseudoHuberElement, half_mse
from distilljax.methods.distribution import ALL_TIMES, DMD2, GAP_TIMES, dmd2
from distilljax.methods.fits import Fit, MinSNR, fit_score
from distilljax.methods.parts import (
    BELOW_NOISE,
    RatioMeans,
    binned_means,
    guidance_needs,
    judged,
    noised,
    path_of,
    per_sample_norm,
    told_field,
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
DMD = Citation(
    "dmd",
    "One-step Diffusion with Distribution Matching Distillation",
    "Yin, Gharbi, Zhang, Shechtman, Durand, Freeman, Park",
    2023,
    "arXiv:2311.18828",
    "eq. 7, 8 and the regression to noise-image pairs",
)
F_DISTILL = Citation(
    "f_distill",
    "One-step Diffusion Models with f-Divergence Distribution Matching",
    "Xu, Nie, Vahdat",
    2025,
    "arXiv:2502.15681",
    "eq. 8",
)
TDM = Citation(
    "tdm",
    "Learning Few-Step Diffusion Models by Trajectory Distribution Matching",
    "Luo, Hu, Sun, Cai, Tang",
    2025,
    "arXiv:2503.06674",
)
# FastGen's times for f-distill: one law for gap, fake score and GAN.
_POLYNOMIAL = KarrasUniform(0.002, 0.998)
_GAP_TIMES = ByPath(central(0.02), edm=_POLYNOMIAL, vp=Uniform(0.001, 0.999))
_ALL_TIMES = ByPath(Uniform(), edm=_POLYNOMIAL, vp=Uniform(0.001, 0.999))
# TDM's: of 1000 timesteps the student uses 800; tau keeps 20 above the data and 10
# below the top of its stretch.
TDM_GRID = ByPath(EvenGrid(), edm=KarrasSteps(), vp=EvenGrid(0.8))
TDM_TIMES = ByPath(central(0.02), vp=Uniform())
TDM_MARGINS = ByPath((0.0, 0.0), vp=(0.021, 0.01))


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


@register(
    family="distribution matching",
    cite=DMD,
    summary="normalised score gap and regression to noise-image pairs",
)
def dmd(
    *,
    regression_weight: Schedule = 0.25,
    metric: Metric = half_mse,
    pairs: Trajectory | None = None,
    law: Law = GAP_TIMES,
    critic_law: Law = ALL_TIMES,
    fit: Fit = Fit(),
    guidance: float = 1.0,
    critic_steps: int = 1,
    floor: float | None = None,
    grid: Grid = CLOCK_GRID,
    path: Path | None = None,
) -> Method:
    """DMD: normalised score gap plus regression to noise-image pairs of the teacher.

    ``regress(gap / mean|x - D_real|) + regression_weight d(G(z), y)`` where ``y`` is
    the end of the teacher's deterministic trajectory from ``z``. The pairs keep the
    modes that the reverse KL divergence drops. Without them and with five critic
    updates it is `dmd2` without its GAN.

    Args:
      regression_weight: weight of the regression, 0.25 in the paper; the number 0
        leaves it and the pairs out.
      metric: ``d``; the paper's is LPIPS: `metrics.FeatureMetric` of its features.
      pairs: how the teacher makes the pairs anew in every update; default 16 Heun
        steps under ``guidance``. The paper makes them once, beforehand: `StoredPairs`
        takes those from the batch.
      law: times of the gap, see `dmd2`.
      critic_law: times at which the fake score is fitted.
      fit: see `dmd2`.
      guidance: scale ``w`` of the teacher.
      critic_steps: critic updates per student update.
      floor: see `dmd2`.
      grid: its first time is where generation starts.
      path: path; default the student's network's.

    Returns:
      The method. Batch: ``cond``, and ``eps`` and ``x0`` of stored pairs. Roles:
      student, teacher, fake_score.
    """
    matching = dmd2(
        steps=(1,),
        grid=grid,
        law=law,
        critic_law=critic_law,
        fit=fit,
        guidance=guidance,
        critic_steps=critic_steps,
        gan_weight=0,
        floor=floor,
        path=path,
    )._replace(name="dmd", cite=(DMD,))
    if isinstance(regression_weight, (int, float)) and regression_weight == 0:
        return matching
    draw = pairs or TeacherTrajectory(1, 16, grid, guidance=guidance, path=path)

    def reach(ctx: Context) -> Array:
        found = ctx.data["pairs"]
        z, t, y = found["states"][0], found["times"][0], found["end"]
        f = ctx.nets.student.flow_map(ctx.cond, path=path_of(ctx, path), two_time=False)
        return losses.regress(losses.toward(f(z, t, 0.0), y), metric)

    critic, student = matching.phases
    student = student._replace(
        terms=(*student.terms, Term("reach", reach, regression_weight)),
        draws={**student.draws, "pairs": draw},
    )
    return check(matching._replace(phases=(critic, student), batch=draw.fields))


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


def _between(path: Path, low: Array, high: Array, share: Array) -> Array:
    """Times at a share of a stretch of the clock, of Karras's ramp on an EDM path."""
    rho = 7.0 if path.family == "edm" else 1.0
    a, b = low ** (1 / rho), high ** (1 / rho)
    return (a + share * (b - a)) ** rho


@register(
    family="distribution matching",
    cite=TDM,
    summary="score gap at every step of the student's own trajectory, data-free",
)
def tdm(
    *,
    steps: tuple[int, ...] = (4,),
    grid: Grid = TDM_GRID,
    separate: bool = True,
    told_end: bool = False,
    random_end: bool = False,
    law: Law = TDM_TIMES,
    margins: tuple[float, float] | ByPath = TDM_MARGINS,
    snr_cap: float | None = None,
    guidance: float = 1.0,
    critic_steps: int = 1,
    metric: Metric = PseudoHuberElement(1e-3),
    floor: float | None = None,
    path: Path | None = None,
) -> Method:
    """TDM: the score gap at every step of the student's deterministic trajectory.

    A step leads from ``x_t`` to ``x_s`` along the student's prediction ``x0``; ``x_s``
    is re-noised by the forward kernel to a time ``tau`` in ``(s, t)``, and ``d(x0, x0 +
    D_real - D_fake) / mean|x0 - D_real|`` at that point moves ``x0``. With one step it
    is `dmd` without its pairs.

    The fake score is fitted to the denoiser target of the kernel from ``x_s`` to
    ``tau``, whose conditional mean is exactly the score of the re-noised states, with
    the weight ``1 - (alpha_tau sigma_s / (alpha_s sigma_tau))^2`` on the velocity that
    keeps it bounded as ``tau`` nears ``s``. The released code (Luo-Yihong/TDM)
    regresses on ``x0`` instead, which would be exact if the noise in ``x_s`` were
    independent of ``x0``, and weights by a ratio of noise densities to make up for
    that; ``snr_cap=5`` is its critic,

        min(snr_tau, 5) exp((|n|^2 - |e|^2) / (2 D)) |D_psi(x_tau, tau) - x0|^2

    with ``n`` the noise that was added at ``s`` and ``e = (x_tau - alpha_tau x0) /
    sigma_tau`` all the noise in ``x_tau``, both as means over the ``D`` elements.

    Args:
      steps: numbers of steps that one student shall serve; every sample draws its own.
      grid: their time grids; even steps of the clock, on a VP path from 0.8 of it on
        (the release's 800 timesteps).
      separate: whether ``tau`` stays inside the step, so that the fake score at a time
        belongs to one step of a grid. Otherwise it lies anywhere above ``s`` (the
        released code's default) and the fake score fits the mixture over steps, unless
        ``told_end``.
      told_end: whether the fake score is told ``s``, as its second time, so that it
        fits every step's states by themselves (a condition on the step in the paper).
      random_end: ends steps at times inside them, see `draws.OdeRollout`.
      law: ``tau``: its share of the clock is taken as a share of the stretch above
        ``s`` (of that stretch of Karras's ramp on an EDM path), 0 to 1 without both
        ends; all of it on a VP path, where the release keeps the ``margins``.
      margins: ``(low, gap)`` in shares of the clock: ``tau`` stays above ``low`` and
        below the top of its stretch by ``gap``.
      snr_cap: largest weight of the released critic, 5 there; None fits the exact
        target.
      guidance: scale ``w`` of the teacher.
      critic_steps: critic updates per student update.
      metric: ``d``; the released pseudo-Huber width is 0.001, nearly the sign of the
        gap. `metrics.half_mse` is DMD's.
      floor: see `dmd2`.
      path: path; default the student's network's.

    Returns:
      The method. Data-free (``cond`` only). Roles: student, teacher, fake_score.
    """
    draws = {"step": OdeRollout(steps, grid, random_end, path)}

    def renoised(ctx: Context, p: Path) -> tuple[Array, Array, Array, Array]:
        found = ctx.data["step"]
        s = found["s"]
        top = found["t"] if separate else max(grid(n, p)[0] for n in steps)
        low, gap = margins.of(p) if isinstance(margins, ByPath) else margins
        low = jnp.maximum(s, low * p.t_max)
        share = ctx.times("t", law, p) / p.t_max
        tau = _between(p, low, top - gap * p.t_max, share)
        eps = ctx.normal("eps", found["x_s"])
        x_tau, target = p.renoise_from(sg(found["x_s"]), s, tau, eps)
        return x_tau, tau, target, eps

    def scored(ctx: Context, p: Path, kind: str) -> Field:
        told = ctx.data["step"]["s"] if told_end else None
        return told_field(ctx, "fake_score", kind, p, told)

    def match(ctx: Context) -> Array:
        p, x = path_of(ctx, path), ctx.data["step"]["x0"]
        x_tau, tau, *_ = renoised(ctx, p)
        real = ctx.nets.teacher.guided(ctx.data, guidance, path=p)(x_tau, tau)
        fake = scored(ctx, p, "x0")(x_tau, tau)
        axes = tuple(range(1, x.ndim))
        weight = 1.0 / transforms.error_size(x, real, axes, floor).squeeze(axes)
        return losses.regress(losses.score_gap(x, real, fake, weight), metric)

    def fit(ctx: Context) -> Array:
        p, s = path_of(ctx, path), ctx.data["step"]["s"]
        x_tau, tau, target, _ = renoised(ctx, p)
        v = scored(ctx, p, "velocity")(x_tau, tau)
        wanted = convert(p, target, x_tau, tau, X0, VELOCITY)
        kept = p.alpha(tau) * p.sigma(s) / (p.alpha(s) * p.sigma(tau))
        return losses.regress(losses.toward(v, wanted, 1.0 - kept**2))

    def fit_to_x0(ctx: Context) -> Array:
        assert snr_cap is not None
        p, x = path_of(ctx, path), sg(ctx.data["step"]["x0"])
        x_tau, tau, _, eps = renoised(ctx, p)
        noise = decompose(p, X0, x, x_tau, tau)[1]
        ratio = jnp.exp(0.5 * (per_sample_norm(eps) ** 2 - per_sample_norm(noise) ** 2))
        weight = MinSNR(snr_cap)(p, tau) * ratio
        found = scored(ctx, p, "x0")(x_tau, tau)
        return losses.regress(losses.toward(found, x, weight))

    terms = (Term("fit", fit if snr_cap is None else fit_to_x0),)
    needs = frozenset({"second_time"} if told_end else ())
    return check(
        Method(
            name="tdm",
            roles=twin_roles(guidance=guidance, fake_needs=needs),
            phases=twin_phases(terms, (Term("match", match),), draws, critic_steps),
            batch=frozenset(),
            sampling=Sampling(
                grid, Deterministic(), path, two_time=False, steps=max(steps)
            ),
            cite=(TDM, DMD),
        )
    )
