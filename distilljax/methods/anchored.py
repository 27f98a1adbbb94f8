"""Consistency anchored in the flow: the map to the data and the velocity in one net."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax import fields, losses, transforms
from distilljax.binding import Bound, Condition
from distilljax.context import Context
from distilljax.corrections import Correction
from distilljax.fields import Field
from distilljax.losses.trajectory import Derivative, exact
from distilljax.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.methods.parts import TEACHER, guidance_needs, noised
from distilljax.metrics import mse_cosine
from distilljax.paths import Path, Time, expand, linear
from distilljax.predictions import VELOCITY, convert
from distilljax.sampling import Consistency, HopFirst
from distilljax.times import (
    ArctanNormal,
    EvenGrid,
    Grid,
    Law,
    Ramp,
    Schedule,
    Uniform,
    value_at,
)

Array = jax.Array
sg = jax.lax.stop_gradient

FACM = Citation(
    "facm",
    "Flow-Anchored Consistency Models",
    "Peng, Zhu, Liu, Wu, Li, Sun, Wu",
    2025,
    "arXiv:2507.03738",
)
DE_CM = Citation(
    "de_cm",
    "Dual-End Consistency Model",
    "Dong, Guo, Bai, Yuan, Luo, Zou",
    2026,
    "arXiv:2602.10764",
    "eq. 8, 13 to 18",
)


def instantaneous(
    net: Bound, cond: Condition, path: Path, mirrored: bool = False
) -> Field:
    """The velocity that a consistency network keeps beside its map to the data.

    Args:
      net: the network.
      cond: its condition.
      path: path on which the field is called.
      mirrored: False tells the network the end time ``s = t``; True asks a one-time
        network at ``-t``, where its map to the data is never asked.

    Returns:
      A field.

    Raises:
      ValueError: if a mirrored time would have to be carried to another path or kind.
    """
    f = net.flow_map(cond, path=path, two_time=not mirrored)
    if mirrored and (net.path != path or net.kind is not f.kind):
        raise ValueError(
            f"mirrored times need a network on the method's path {path} that predicts "
            f"{f.kind.name!r}; {net.network.name!r} predicts {net.kind.name!r} on "
            f"{net.path}; use a network with a second time and mirrored=False"
        )

    def field(x: Array, t: Time) -> Array:
        out = f.output(x, -t, 0.0) if mirrored else f.output(x, t, t)
        return convert(path, out, x, t, f.kind, VELOCITY)

    return field


@dataclasses.dataclass(frozen=True)
class OnFlow:
    """A noised point and the velocity there: ``{"x_t", "t", "v"}``.

    Attributes:
      law: law of the time.
      path: path of the point.
      teacher: whether the velocity is a teacher's or that of the data.
      guidance: scale ``w``; without a teacher the null velocity is the student's own.
      interval: times at which guidance is on.
      max_norm: see `fields.guide`.
      mirrored: see `instantaneous`.
    """

    law: Law
    path: Path
    teacher: bool = True
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    max_norm: float | None = None
    mirrored: bool = False

    def __call__(self, ctx: Context) -> dict[str, Array]:
        x_t, t, eps = noised(ctx, ctx.data["x0"], self.law, self.path)
        if self.teacher:
            field = ctx.nets.teacher.guided(
                ctx.data,
                self.guidance,
                kind="velocity",
                path=self.path,
                interval=self.interval,
                max_norm=self.max_norm,
            )
        else:
            v = self.path.velocity(ctx.data["x0"], eps, t)
            field = self._guided(ctx, v)
        return {"x_t": x_t, "t": t, "v": sg(field(x_t, t))}

    def _guided(self, ctx: Context, v: Array) -> Field:
        def of_data(x: Array, t: Time) -> Array:
            return v

        if self.guidance == 1:
            return of_data
        student = ctx.nets.student
        null = instantaneous(
            student, student.null_condition(ctx.data), self.path, self.mirrored
        )
        return fields.guided(
            of_data,
            null,
            self.guidance,
            interval=self.interval,
            max_norm=self.max_norm,
        )


def anchor(path: Path, mirrored: bool = False) -> Callable[[Context], Array]:
    """Term ``mean |u - v|^2 + 1 - cos(u, v)`` of the velocity at ``point``."""

    def loss(ctx: Context) -> Array:
        x_t, t, v = (ctx.data["point"][k] for k in ("x_t", "t", "v"))
        u = instantaneous(ctx.nets.student, ctx.cond, path, mirrored)(x_t, t)
        return losses.regress(losses.toward(u, v), mse_cosine)

    return loss


def shortcut(
    path: Path,
    *,
    two_time: bool,
    relaxation: float | None,
    limit: float,
    p: float,
    eps: float,
    warmup: Schedule = 1.0,
    derivative: Derivative = exact,
) -> Callable[[Context], Array]:
    """Term of the map to the data at ``point``; see `facm` for the arguments."""

    def loss(ctx: Context) -> Array:
        x_t, t, v = (ctx.data["point"][k] for k in ("x_t", "t", "v"))
        f = ctx.nets.student.flow_map(ctx.cond, path=path, two_time=two_time)
        kappa = value_at(warmup, ctx.step)
        c = losses.eulerian(f, v, x_t, t, warmup=kappa, derivative=derivative)
        return losses.regress(weighted(c, t / path.t_max, relaxation, limit, p, eps))

    return loss


def weighted(
    c: Correction,
    share: Array,
    relaxation: float | None,
    limit: float,
    p: float,
    eps: float,
) -> Correction:
    """Clipped and relaxed direction, under the weights of FACM's shortcut loss."""
    c = transforms.clip(transforms.drop_nonfinite(c), limit)
    if relaxation is not None:
        relax = 1.0 - (1.0 - share) ** relaxation
        c = c._replace(direction=expand(relax, c.direction) * c.direction)
    axes = tuple(range(1, c.direction.ndim))
    error = jnp.mean(c.direction**2, axis=axes)
    # The factor 2: regress takes half the mean of squares.
    return transforms.scale(
        c, 2.0 * jnp.sin(0.5 * math.pi * share) * (error + eps) ** -p
    )


def hop(
    velocity: Callable[[Context], Field],
    path: Path,
    law: Law,
    start: Schedule,
    every: int,
    start_weight: float,
    end_weight: float,
) -> Callable[[Context], Array]:
    """Term of the map from noise to every level; see `de_cm` for the arguments."""

    def loss(ctx: Context) -> Array:
        x0, share = ctx.data["x0"], value_at(start, ctx.step)
        r = jnp.broadcast_to(share * path.t_max, x0.shape[:1])
        end = share * ctx.times("end", law, path)
        x_r = path.noise(x0, ctx.normal("eps"), r)

        def values() -> Array:
            field = velocity(ctx)
            c = losses.dual_end(
                ctx.nets.student.flow_map(ctx.cond, path=path, two_time=True),
                field,
                field(x_r, r),
                x_r,
                r,
                end,
                start_weight=start_weight,
                end_weight=end_weight,
            )
            return 2.0 * losses.regress(transforms.drop_nonfinite(c))

        if every == 1:
            return values()
        off = jax.eval_shape(values)
        return jax.lax.cond(
            ctx.step % every == 0, values, lambda: jnp.zeros(off.shape, off.dtype)
        )

    return loss


def facm(
    *,
    law: Law = ArctanNormal(-0.8, 1.6),
    teacher: bool = True,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = (0.0, 0.875),
    anchor_weight: Schedule = 1.0,
    relaxation: float | None = 0.5,
    limit: float = 1.0,
    p: float = 0.5,
    eps: float = 1e-3,
    warmup: Schedule = 1.0,
    mirrored: bool = False,
    derivative: Derivative = exact,
    path: Path = linear(),
    sampling_grid: Grid = EvenGrid(),
) -> Method:
    """FACM: the shortcut to the data, anchored by flow matching in the same network.

    Anchor: ``mean |u(x_t, t, t) - v|^2 + 1 - cos``. Shortcut: with ``u* = v - t du/dt``
    and ``g = clip(u* - u, -1, 1)`` the target is ``u + a g``, ``a = 1 - (1 - t)^0.5``;
    with ``e = mean |a g|^2`` the loss is ``sin(pi t / 2) e / sg (e + 0.001)^0.5``. The
    two tasks are told apart by the time: an end time 0 or ``t``, or one time ``t`` or
    ``-t``.

    Args:
      law: times, of both terms, which share their points.
      teacher: False takes the velocity of the data.
      guidance: scale ``w``; without a teacher the null velocity is the student's own,
        which label dropout must have taught it before.
      guidance_interval: times of ``path`` at which guidance is on.
      anchor_weight: weight of the anchor; the number 0 leaves it out.
      relaxation: power in ``a``; None for ``a = 1``.
      limit: largest element of the gap ``u* - u``.
      p: power of the adaptive weight.
      eps: constant of the adaptive weight.
      warmup: ratio that scales ``t du/dt``; the paper has none.
      mirrored: asks a one-time network at ``-t`` for the anchor (the paper's expanded
        time interval) in place of an end time.
      derivative: `losses.exact` or `losses.finite_difference(step)`.
      path: the linear path; others work likewise.
      sampling_grid: times of the sampler.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, with a second time
      unless ``mirrored``; teacher.
    """
    point = OnFlow(law, path, teacher, guidance, guidance_interval, mirrored=mirrored)
    short = shortcut(
        path,
        two_time=not mirrored,
        relaxation=relaxation,
        limit=limit,
        p=p,
        eps=eps,
        warmup=warmup,
        derivative=derivative,
    )
    terms = (Term("shortcut", short),)
    if not (isinstance(anchor_weight, (int, float)) and anchor_weight == 0):
        terms += (Term("anchor", anchor(path, mirrored), anchor_weight),)
    needs = {"jvp"} | (set() if mirrored else {"second_time"})
    if not teacher:
        needs |= guidance_needs(guidance)
    roles = {"student": Role(needs=frozenset(needs))}
    if teacher:
        roles["teacher"] = TEACHER._replace(needs=guidance_needs(guidance))
    return check(
        Method(
            name="facm",
            roles=roles,
            phases=(Phase("student", ("student",), terms, {"point": point}),),
            sampling=Sampling(
                sampling_grid, Consistency(), path, two_time=not mirrored
            ),
            cite=(FACM,),
        )
    )


def de_cm(
    *,
    law: Law = Uniform(),
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    max_norm: float | None = None,
    anchor_weight: Schedule = 1.0,
    hop_weight: Schedule = 1.0,
    every: int = 3,
    start: Schedule = Ramp(20_000, 0.9, 1.0),
    start_weight: float = 1.0,
    end_weight: float = 0.5,
    relaxation: float | None = 0.5,
    limit: float = 1.0,
    p: float = 0.5,
    eps: float = 1e-3,
    warmup: Schedule = 1.0,
    path: Path = linear(),
    sampling_grid: Grid = EvenGrid(),
) -> Method:
    """Dual-End Consistency: three clusters of pairs in place of all ``(t, s)``.

    ``L_cm`` (to the data) + ``L_fm`` (``s = t``, `anchor`) + ``L_n2n`` (from noise to
    every level, `losses.dual_end`, every third cycle).

    No official code exists, and what the paper says was read in reading notes. Known:
    the clusters, equation 8, the anchor with its cosine, the residual of ``L_n2n``, the
    decay of its start, the velocity normalisation and the constants below but
    ``max_norm`` (``eta``), the weight ``w'`` (1 here) and how ``L_cm`` joins its
    targets. That target is called a weighted combination of the velocity ``v`` and the
    student's own output. On a Gaussian, where the exact map is known, the readings
    differ:

    - ``u + a (u* - u)``, ``u* = v - t du/dt``, rests at the exact map for every ``a >
      0``. It is FACM's, and the default here (``relaxation``).
    - ``a v + (1 - a)(u - t du/dt)``, the two squares of equation 8 under shares, rests
      there for ``a = 1/2`` alone, where their gradient is that of ``u*``. Otherwise it
      rests at the solution of ``u = v - kappa t du/dt``, ``kappa = (1 - a)/a``, the
      mean velocity under the weight ``t^(1/kappa - 1)``, whose jump misses by half the
      spread of the data at ``a = 0.7`` or 0.3: a tangent warm-up, sound only if
      ``kappa`` ends at 1 (``warmup``).
    - ``a v + (1 - a) u`` rests at ``u = v``: no consistency at all.

    The notes print the tangent of ``L_n2n`` with its two weights exchanged; that form
    does not vanish on the exact map, and `losses.dual_end` does.

    Args:
      law: times of the first two clusters, which share their points, and of the end of
        the third as a share of its start. The paper stratifies a uniform law over the
        batch; this one is drawn independently.
      guidance: scale ``w`` of the teacher; 1.75 on ImageNet.
      guidance_interval: times of ``path`` at which guidance is on.
      max_norm: largest norm of the difference that guidance adds, ``eta``.
      anchor_weight: weight of ``L_fm``; the number 0 leaves it out.
      hop_weight: weight of ``L_n2n``; the number 0 leaves it out.
      every: cycles from one ``L_n2n`` to the next.
      start: start of the third cluster over cycles, a share of ``t_max``.
      start_weight: ``gamma``, weight of the derivative in the start.
      end_weight: ``lambda``, weight of the derivative in the end.
      relaxation: power in ``a = 1 - (1 - t)^relaxation``; None for ``a = 1``.
      limit: see `facm`.
      p: see `facm`.
      eps: see `facm`.
      warmup: ``kappa`` above.
      path: the linear path; others work likewise.
      sampling_grid: times of the sampler, whose first step is a hop.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student with a second time,
      teacher.
    """
    point = OnFlow(law, path, True, guidance, guidance_interval, max_norm)

    def velocity(ctx: Context) -> Field:
        return ctx.nets.teacher.guided(
            ctx.data,
            guidance,
            kind="velocity",
            path=path,
            interval=guidance_interval,
            max_norm=max_norm,
        )

    ends = hop(velocity, path, law, start, every, start_weight, end_weight)
    short = shortcut(
        path,
        two_time=True,
        relaxation=relaxation,
        limit=limit,
        p=p,
        eps=eps,
        warmup=warmup,
    )
    terms = (Term("shortcut", short),)
    for name, loss, weight in (
        ("anchor", anchor(path), anchor_weight),
        ("hop", ends, hop_weight),
    ):
        if not (isinstance(weight, (int, float)) and weight == 0):
            terms += (Term(name, loss, weight),)
    return check(
        Method(
            name="de_cm",
            roles={
                "student": Role(needs=frozenset({"jvp", "second_time"})),
                "teacher": TEACHER._replace(needs=guidance_needs(guidance)),
            },
            phases=(Phase("student", ("student",), terms, {"point": point}),),
            sampling=Sampling(sampling_grid, HopFirst(), path, two_time=True),
            cite=(DE_CM,),
        )
    )
