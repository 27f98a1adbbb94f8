"""MeanFlow: average velocities between any ``t`` and ``s``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.method import (
    Citation,
    Method,
    Out,
    Phase,
    Role,
    Sampling,
    Term,
    check,
)
from distilljax.diffusion.paths import Path, expand
from distilljax.diffusion.sampler import Deterministic
from distilljax.diffusion.times import (
    Grid,
    Pair,
    PairLaw,
    PathGrid,
    Schedule,
    fixed_shares,
    value_at,
)
from distilljax.losses import transforms
from distilljax.losses.corrections import Correction
from distilljax.losses.metrics import sum_squares
from distilljax.losses.trajectory import Derivative, exact
from distilljax.methods.parts import (
    TEACHER,
    dropped,
    guidance_needs,
    path_of,
    per_sample_norm,
)
from distilljax.methods.registry import register

Array = jax.Array

MEAN_FLOW = Citation(
    "mean_flow",
    "Mean Flows for One-step Generative Modeling",
    "Geng, Deng, Bai, Kolter, He",
    2025,
    "arXiv:2505.13447",
    "eq. 6, 11, 19, 22",
)


@register(
    family="flow map",
    cite=MEAN_FLOW,
    summary="average velocity between any two times through one jvp",
)
def mean_flow(
    *,
    law: PairLaw = Pair(),
    teacher: bool = True,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    omega: float = 1.0,
    kappa: float = 0.0,
    p: float = 1.0,
    eps: float = 1e-2,
    warmup: Schedule = 1.0,
    derivative: Derivative = exact,
    label_dropout: float = 0.0,
    init: str = "teacher",
    path: Path | None = None,
    sampling_grid: Grid = PathGrid(),
) -> Method:
    """MeanFlow: the average velocity ``u`` regressed on ``v - (t - s) du/dt``.

    ``S / sg[(S + eps)^p]`` with ``S = |u - sg(v - (t - s) du/dt)|^2`` summed over the
    sample (eq. 11 and 22); ``du/dt`` by one jvp with tangent ``(v, 1, 0)``.

    Args:
      law: law of ``(t, s)``; the paper's is logit-normal(-0.4, 1), 75 % on the
        diagonal. With ``Pair(fixed=True)``, as the ImageNet release draws it, only the
        rows off the diagonal take the jvp: an update costs 3.25 evaluations of the
        network in place of 4. See `Pair` for the law of the CIFAR-10 release.
      teacher: True takes ``v`` from a teacher; False from the data, mixed with the
        network's own velocity when ``omega`` or ``kappa`` ask for guidance.
      guidance: scale ``w`` of the teacher.
      guidance_interval: times of ``path`` at which guidance is on.
      omega: without a teacher: ``v = omega v + (1 - omega - kappa) u_null + kappa
        u_cond`` (eq. 19), an effective scale of ``omega / (1 - kappa)``.
      kappa: see ``omega``.
      p: power of the adaptive weight; 0 diverges on small problems, 0.5 suits them.
      eps: constant of the adaptive weight.
      warmup: ratio in [0, 1] that scales the jvp part; the paper has none.
      derivative: `losses.exact` or `losses.finite_difference(step)`.
      label_dropout: mean share of samples with the null condition, whose velocity is
        left unguided (without a teacher). They are drawn among those with ``s = t``
        while these suffice, as in the release, which takes the first of them.
      init: ``random`` starts from random weights, as the paper does, which trains on
        data alone; ``teacher`` from the teacher's.
      path: path; default the student's network's.
      sampling_grid: times of the sampler.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student with a second time,
      teacher.
    """
    own = not teacher and (omega != 1.0 or kappa != 0.0)

    def average(ctx: Context) -> Out:
        way, student = path_of(ctx, path), ctx.nets.student
        x0 = ctx.data["x0"]
        t, s = ctx.pair("times", law, way)
        noise = ctx.normal("eps")
        x_t = way.noise(x0, noise, t)
        chances = _on_diagonal(label_dropout, t, s)
        cond, null_mask = dropped(ctx, student, label_dropout, chances)
        if teacher:
            field = ctx.nets.teacher.guided(
                ctx.data,
                guidance,
                kind="velocity",
                path=way,
                interval=guidance_interval,
            )
            v = field(x_t, t)
        else:
            v = way.velocity(x0, noise, t)
        if own:
            now = student.detached()
            null = now.velocity(now.null_condition(ctx.data), path=way)(x_t, t)
            kept = now.velocity(cond, path=way)(x_t, t) if kappa else 0.0
            mixed = omega * v + (1.0 - omega - kappa) * null + kappa * kept
            on = jnp.ones_like(t, bool)
            if guidance_interval is not None:
                on = (t >= guidance_interval[0]) & (t <= guidance_interval[1])
            if null_mask is not None:
                on = on & ~null_mask
            v = jnp.where(expand(on.astype(x_t.dtype), x_t) > 0, mixed, v)

        def moved(rows: tuple[Array, ...], cond: Any, how: Derivative) -> Correction:
            return losses.eulerian(
                student.flow_map(cond, path=way, two_time=True),
                *rows,
                warmup=value_at(warmup, ctx.step),
                derivative=how,
            )

        shares = fixed_shares(law, ctx.batch_size)
        rows = (v, x_t, t, s)
        if shares is None or 0 in shares.counts:
            still = shares is not None and shares.counts[0] == 0
            c = moved(rows, cond, _none if still else derivative)
        else:
            (off, off_cond), (on, on_cond) = (
                shares.take(i, (rows, cond)) for i in range(2)
            )
            parts = moved(off, off_cond, derivative), moved(on, on_cond, _none)
            c = Correction(*map(shares.join, *parts))
        size = jnp.mean(per_sample_norm(c.direction))
        c = transforms.adaptive_l2(transforms.drop_nonfinite(c), p, eps)
        return Out(losses.regress(c, sum_squares), {"tangent_norm": size})

    needs = {"second_time"} | ({"jvp"} if derivative is exact else set())
    needs |= {"null"} if own or label_dropout else set()
    roles = {"student": Role(init=init, needs=frozenset(needs))}
    if teacher:
        roles["teacher"] = TEACHER._replace(needs=guidance_needs(guidance))
    return check(
        Method(
            name="mean_flow",
            roles=roles,
            phases=(Phase("student", ("student",), (Term("average", average),)),),
            sampling=Sampling(sampling_grid, Deterministic(), path, two_time=True),
            cite=(MEAN_FLOW,),
        )
    )


def _on_diagonal(share: float, t: Array, s: Array) -> Array:
    """Chances ``[B]`` with mean ``share``: first of the rows with ``s = t``."""
    on = (s >= t).astype(jnp.float32)
    part = jnp.mean(on)
    here = jnp.minimum(share / jnp.maximum(part, 1e-6), 1.0)
    rest = jnp.maximum(share - part, 0.0) / jnp.maximum(1.0 - part, 1e-6)
    return on * here + (1.0 - on) * rest


def _none(fn: Callable, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Output and derivative where the tangents are zero, at ``s = t``."""
    output = fn(*primals)
    return output, jnp.zeros_like(output)
