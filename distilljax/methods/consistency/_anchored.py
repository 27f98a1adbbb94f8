"""Consistency anchored in the flow: the map to the data and the velocity in one net."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.binding import Bound, Condition
from distilljax.core.context import Context
from distilljax.diffusion import fields
from distilljax.diffusion.fields import Field
from distilljax.diffusion.paths import Path, Time, expand
from distilljax.diffusion.predictions import VELOCITY, convert
from distilljax.diffusion.times import Law, Schedule, value_at
from distilljax.losses import transforms
from distilljax.losses.corrections import Correction
from distilljax.losses.metrics import mse_cosine
from distilljax.losses.trajectory import Derivative, exact
from distilljax.methods.parts import chosen, noised

Array = jax.Array
sg = jax.lax.stop_gradient


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
      mirrored: where the student's own velocity is asked, see `instantaneous`; None
        asks a network with one time at that time.
      outside: see `facm`.
    """

    law: Law
    path: Path
    teacher: bool = True
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    max_norm: float | None = None
    mirrored: bool | None = False
    outside: bool = True

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
        null = student.null_condition(ctx.data)

        def own(x: Array, t: Time) -> Array:
            away = null
            if self.outside and self.interval is not None:
                low, high = self.interval
                away = chosen((t >= low) & (t <= high), null, ctx.cond)
            if self.mirrored is None:
                return student.velocity(away, path=self.path)(x, t)
            return instantaneous(student, away, self.path, self.mirrored)(x, t)

        return fields.guided(
            of_data,
            own,
            self.guidance,
            interval=None if self.outside else self.interval,
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
