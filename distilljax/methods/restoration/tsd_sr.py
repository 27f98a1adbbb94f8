"""TSD-SR: restoration in one step from a degraded image."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import Rollout
from distilljax.core.method import Citation, Method, Sampling, Term, check
from distilljax.diffusion.paths import Path, expand
from distilljax.diffusion.predictions import EPS, VELOCITY, X0, convert
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import EvenGrid, Law, Schedule, central
from distilljax.losses.corrections import correct
from distilljax.losses.metrics import Metric, half_mse
from distilljax.methods.fits import Fit, fit_score
from distilljax.methods.parts import guidance_needs, path_of, twin_phases, twin_roles
from distilljax.methods.registry import register

Array = jax.Array
sg = jax.lax.stop_gradient

TSD_SR = Citation(
    "tsd_sr",
    "TSD-SR: One-Step Diffusion with Target Score Distillation for Real-World Image "
    "Super-Resolution",
    "Dong, Fan, Guo, Wang, Zhang, Chen, Luo, Zou",
    2024,
    "arXiv:2411.18263",
)


@dataclasses.dataclass(frozen=True)
class Restored:
    """The student's one step from a data field in place of noise.

    Attributes:
      of: data field, shape of the samples.
      path: path; default the student's network's.
    """

    of: str
    path: Path | None = None

    def __call__(self, ctx: Context) -> Array:
        p = path_of(ctx, self.path)
        f = ctx.nets.student.flow_map(ctx.cond, path=p, two_time=False)
        return f(p.start(ctx.data[self.of]), p.t_max, 0.0)


def _falling(t: Array, count: int, spacing: float, shift: float) -> Array:
    """Times of a trajectory from ``t`` on, ``[count, B]``, shares of the clock.

    Even steps of the clock without its shift, which end at 0.001 at the latest.
    """
    plain = t / (shift - (shift - 1.0) * t)
    end = jnp.maximum(plain - count * spacing, jnp.minimum(0.001, plain))
    part = jnp.arange(count, dtype=t.dtype)[:, None] / count
    even = plain + part * (end - plain)
    return shift * even / (1.0 + (shift - 1.0) * even)


@register(
    family="restoration",
    cite=TSD_SR,
    summary="score gap and target score gap along a short trajectory, one step",
    makes="restorer",
)
def tsd_sr(
    *,
    start: str | None = None,
    share: float = 0.7,
    weights: tuple[float, ...] = (1.0, 0.3, 0.3, 0.3),
    spacing: float = 0.05,
    shift: float = 1.0,
    raw_velocity: bool = False,
    law: Law = central(0.05),
    critic_law: Law = central(0.05),
    fit: Fit = Fit(),
    guidance: float = 1.0,
    fake_guidance: float = 1.0,
    regression_weight: Schedule = 2.0,
    metric: Metric = half_mse,
    critic_steps: int = 1,
    path: Path | None = None,
) -> Method:
    """TSD-SR: a score gap and a target score gap along a short trajectory.

    The student's output ``x`` and the sharp image ``x0`` are noised alike to ``a`` and
    ``b``. At each of ``len(weights)`` falling times (distribution-aware sampling)

        g += w sigma [ share (D_real(a) - D_fake(a))
                       - (1 - share) sigma (e_real(a) - e_real(b)) ],

    then ``a`` follows the fake score and ``b`` the teacher by one DDIM step. ``x``
    moves along ``g``. On the linear path ``sigma (D_real - D_fake)`` is ``t^2 (v_fake -
    v_real)``. Besides, ``x`` is regressed on ``x0``.

    The released script (Microtreei/TSD-SR, train/train.py) computes all of this, the
    distance between ``x`` and its target included, in a block without gradient: as it
    stands its student learns from the regression alone, and ``use_dasm`` is off, which
    is ``weights=(1.0,)``. This is the term of the paper, with its gradient.

    The script subtracts raw velocities in the second bracket, ``sigma (v_real(a) -
    v_real(b))`` (``raw_velocity=True``). Between two points these are no noise
    predictions, and on Gaussian data of standard deviation ``s`` the difference pushes
    away from ``x0`` for ``t < s^2 / (1 + s^2)``; the noise form of the default always
    pulls. The script's fake score is fitted in ``x0`` with a weight of its own draw,
    whose mean is 1/2 (``fit=Fit("x0")``); the default is the paper's flow matching.

    Args:
      start: batch field with the degraded latent that the student starts from in place
        of noise, as in the paper; the sampler of the method then takes it where others
        take noise. None starts from noise, and the degraded image is the condition.
      share: of the score gap against the target score gap, 0.7 in the release.
      weights: of the points of the trajectory; one is the plain form.
      spacing: of the points, a fraction of the clock. A trajectory that would pass
        0.001 of the clock ends there, in even steps.
      shift: shift of the clock in which the points are spaced evenly, see
        `times.Shifted`; 3 for Stable Diffusion 3, with
        ``law=Shifted(central(0.05), 3)``.
      raw_velocity: whether the second bracket is the script's.
      law: first time; the script's indices 50 to 949 of 1000.
      critic_law: times at which the fake score is fitted, the same.
      fit: prediction, path and weight of that fit, see `fits.Fit`.
      guidance: scale ``w`` of the teacher, 7.5 in the release.
      fake_guidance: scale of the fake score, which no other method guides; the release
        sets it to the teacher's.
      regression_weight: weight of the regression; 2 with `metrics.half_mse` is the
        release's mean squared error.
      metric: of the regression, for example a feature metric.
      critic_steps: critic updates per student update.
      path: path; default the student's network's.

    Returns:
      The method. Batch: ``x0`` and ``start`` (and ``cond``). Roles: student, teacher,
      fake_score.
    """
    draws = {"x": Rollout((1,), path=path) if start is None else Restored(start, path)}

    def match(ctx: Context) -> Array:
        p, x = path_of(ctx, path), ctx.data["x"]
        t, eps = ctx.times("t", law, p), ctx.normal("eps", x)
        a, b = p.noise(sg(x), eps, t), p.noise(ctx.data["x0"], eps, t)
        real = ctx.nets.teacher.guided(ctx.data, guidance, path=p)
        fake = ctx.nets.fake_score.guided(ctx.data, fake_guidance, path=p)
        direction = jnp.zeros_like(x)
        times = _falling(t / p.t_max, len(weights), spacing, shift) * p.t_max
        held = VELOCITY if raw_velocity else EPS
        for i, weight in enumerate(weights):
            now = times[i]
            real_a, fake_a, real_b = real(a, now), fake(a, now), real(b, now)
            held_a = convert(p, real_a, a, now, X0, held)
            held_b = convert(p, real_b, b, now, X0, held)
            sigma = p.sigma(expand(now, x))
            gap = share * (real_a - fake_a)
            gap -= (1.0 - share) * sigma * (held_a - held_b)
            direction += weight * sigma * gap
            if i + 1 < len(weights):
                after = times[i + 1]
                a, b = p.jump(fake_a, a, now, after), p.jump(real_b, b, now, after)
        return losses.regress(correct(x, direction))

    def restore(ctx: Context) -> Array:
        return losses.regress(losses.toward(ctx.data["x"], ctx.data["x0"]), metric)

    fitting = fit_score("fake_score", "x", critic_law, path, fit=fit)
    fake_needs = guidance_needs(fake_guidance) | guidance_needs(fit.guidance)
    terms = (Term("match", match), Term("restore", restore, regression_weight))
    return check(
        Method(
            name="tsd_sr",
            roles=twin_roles(guidance=guidance, fake_needs=fake_needs),
            phases=twin_phases((fitting,), terms, draws, critic_steps),
            batch=frozenset({"x0"} if start is None else {"x0", start}),
            sampling=Sampling(
                EvenGrid(), Consistency(), path, two_time=False, start=start
            ),
            cite=(TSD_SR,),
        )
    )
