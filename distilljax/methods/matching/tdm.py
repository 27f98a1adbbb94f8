"""Trajectory distribution matching (TDM)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import OdeRollout
from distilljax.core.method import Citation, Method, Sampling, Term, check
from distilljax.diffusion.clocks import ByPath, KarrasSteps
from distilljax.diffusion.fields import Field
from distilljax.diffusion.paths import Path
from distilljax.diffusion.predictions import VELOCITY, X0, convert, decompose
from distilljax.diffusion.sampler import Deterministic
from distilljax.diffusion.times import EvenGrid, Grid, Law, Uniform, central
from distilljax.losses import transforms
from distilljax.losses.metrics import Metric, PseudoHuberElement
from distilljax.methods.fits import MinSNR
from distilljax.methods.matching.dmd import DMD
from distilljax.methods.parts import (
    path_of,
    per_sample_norm,
    told_field,
    twin_phases,
    twin_roles,
)
from distilljax.methods.registry import register

Array = jax.Array
sg = jax.lax.stop_gradient

TDM = Citation(
    "tdm",
    "Learning Few-Step Diffusion Models by Trajectory Distribution Matching",
    "Luo, Hu, Sun, Cai, Tang",
    2025,
    "arXiv:2503.06674",
)

# TDM's: of 1000 timesteps the student uses 800; tau keeps 20 above the data and 10
# below the top of its stretch.
TDM_GRID = ByPath(EvenGrid(), edm=KarrasSteps(), vp=EvenGrid(0.8))

TDM_TIMES = ByPath(central(0.02), vp=Uniform())

TDM_MARGINS = ByPath((0.0, 0.0), vp=(0.021, 0.01))


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
