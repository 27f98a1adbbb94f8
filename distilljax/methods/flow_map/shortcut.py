"""Shortcut models: one jump equals two of half its length."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax import losses
from distilljax.core.binding import Bound
from distilljax.core.context import Context
from distilljax.core.method import (
    Citation,
    Follow,
    Method,
    Phase,
    Role,
    Sampling,
    Term,
    check,
)
from distilljax.diffusion import fields
from distilljax.diffusion.flow_maps import AffineFlowMap
from distilljax.diffusion.paths import Path, Time
from distilljax.diffusion.predictions import VELOCITY, convert
from distilljax.diffusion.sampler import Deterministic
from distilljax.diffusion.shares import Shares
from distilljax.diffusion.times import Grid, PathGrid, Schedule
from distilljax.methods.parts import TEACHER, dropped, guidance_needs, path_of
from distilljax.methods.registry import register
from distilljax.runtime.axes import looked_up

Array = jax.Array

SHORTCUT = Citation(
    "shortcut",
    "One Step Diffusion via Shortcut Models",
    "Frans, Hafner, Levine, Abbeel",
    2024,
    "arXiv:2410.12557",
    "eq. 4, 5",
)


@register(
    family="flow map",
    cite=SHORTCUT,
    summary="one jump equals two of half its length",
)
def shortcut(
    *,
    levels: int = 7,
    share: float = 0.125,
    biased: bool = False,
    grid: Grid = PathGrid(),
    teacher: bool = True,
    guidance: float = 1.0,
    clip: float | None = None,
    target_decay: Schedule = 0.999,
    label_dropout: float = 0.0,
    path: Path | None = None,
) -> Method:
    """Shortcut models: one jump equals two of half its length, down a binary tree.

    A ``share`` of the rows of a batch jumps, and with a level ``n < levels`` for each
    (see `jump_levels`), a random one of the ``2^n`` equal jumps ``t -> s`` of that
    level and ``m`` in its middle,

        |u(x_t, t, s) - sg (u^-(x_t, t, m) + u^-(x_m, m, s)) / 2|^2,

    ``x_m`` the end of the first half (eq. 4, 5; in its second half the paper prints
    ``t`` for ``m``, the code has ``m``). The other rows match the velocity at ``s =
    t``, at the starts of the ``2^levels`` smallest steps. Only the rows that jump are
    rolled out, so that an update costs ``3 + 2 share`` evaluations of the network.

    Below the last level the halves are velocities, ``u^-(x, t, t)``. The release tells
    its network the length as an index, and the same index for the smallest step and
    for the velocity; here the sampler likewise tells ``s = t`` for a smallest step, so
    that what it asks for has been trained. The release keeps ``1e-5`` of the noise at
    the data.

    Args:
      levels: halvings from the whole range to the smallest step.
      share: share of the rows that learn to jump; 1/8 in the paper, 0 is flow matching.
        In a batch with fewer such rows than levels all of them jump the whole range, as
        in the release.
      biased: gives half of the rows that jump to the two longest jumps
        (``bootstrap_dt_bias`` of the release).
      grid: the ``2^levels`` smallest steps, which are also the sampler's.
      teacher: True takes the velocity from a teacher; False from the data, as in the
        paper.
      guidance: scale ``w`` of the teacher; without one, of the halves below the last
        level, from where it spreads to longer jumps.
      clip: largest absolute value of ``x_m`` and of the target, in the data's units;
        the release has 4, the range of its latents.
      target_decay: EMA decay of the target network; 0 for the student itself
        (``bootstrap_ema`` off).
      label_dropout: share of the rows that do not jump with the null condition (without
        a teacher).
      path: path; default the student's network's.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student with a second time,
      target, teacher. Draws of its term ``halve``: ``place``, uniform numbers ``[B]``,
      jump ``floor(2^n place)`` of the row's level from the noise on; ``eps``; ``drop``.
    """
    own = not teacher and guidance != 1.0

    def halve(ctx: Context) -> Array:
        way, student, kept = path_of(ctx, path), ctx.nets.student, ctx.nets.target
        found = jump_levels(ctx.batch_size, levels, share, biased)
        rows = _jumping(ctx.batch_size, share)
        level = ctx.constrain(jnp.asarray(found, jnp.int32))
        stride = 2 ** (levels - level)
        index = stride * jnp.floor(ctx.uniform("place") * 2.0**level).astype(jnp.int32)
        x0, eps = ctx.data["x0"], ctx.normal("eps")
        wide = jnp.promote_types(x0.dtype, jnp.float32)
        times = jnp.asarray(grid(2**levels, way), wide)
        t, m, s = (looked_up(times, index + add) for add in (0, stride // 2, stride))
        x_t = way.noise(x0, eps, t)
        still = level == levels
        chances = label_dropout * still
        cond, _ = dropped(ctx, student, label_dropout, chances)
        f = _standing(student.flow_map(cond, path=way, two_time=True), still)

        def rolled_out() -> Array:
            x, start, middle, end, told = rows.take(0, (x_t, t, m, s, cond))
            last = _last(found[rows.part() == 0], levels)
            on = jnp.asarray(last.part() == 0)
            target = kept.flow_map(told, path=way, two_time=True)
            target = _standing(target, on)
            if own and last.counts[0]:
                null = rows.take(0, kept.null_condition(ctx.data))
                null = kept.flow_map(last.take(0, null), path=way, two_time=True)
                target = _guided(target, _standing(null, True), guidance, last)
            return losses.two_jumps(f, target, x, start, middle, end, clip=clip)

        def velocity() -> Array:
            x, noise, start, clean = rows.take(1, (x_t, eps, t, x0))
            if teacher:
                known = {k: ctx.data[k] for k in ("cond", "null") if k in ctx.data}
                v = ctx.nets.teacher.guided(
                    rows.take(1, known), guidance, kind="velocity", path=way
                )(x, start)
            else:
                v = way.velocity(clean, noise, start)
            return convert(way, v, x, start, VELOCITY, f.kind)

        parts = zip((rolled_out, velocity), rows.counts, strict=True)
        wanted = rows.join(*(make() if count else x_t[:0] for make, count in parts))
        return losses.regress(losses.toward(f.output(x_t, t, s), wanted))

    needs = {"second_time"} | ({"null"} if own or label_dropout else set())
    student = Role(needs=frozenset(needs))
    follow = Follow("student", target_decay)
    roles = {
        "student": student,
        "target": student._replace(init="student", follow=follow),
    }
    if teacher:
        roles["teacher"] = TEACHER._replace(needs=guidance_needs(guidance))
    return check(
        Method(
            name="shortcut",
            roles=roles,
            phases=(Phase("student", ("student",), (Term("halve", halve),)),),
            sampling=Sampling(
                grid,
                Deterministic(),
                path,
                two_time=True,
                view=Smallest(grid, levels),
            ),
            cite=(SHORTCUT,),
        )
    )


def _jumping(batch: int, share: float) -> Shares:
    """``(jumping, other)`` rows of a batch."""
    # A product like 0.7 * 10 may come out just below an integer.
    count = int(share * batch + 1e-6)
    return Shares((count, batch - count))


def _last(found: np.ndarray, levels: int) -> Shares:
    """``(last level, longer)`` of rows that jump, from their levels."""
    count = int(np.sum(found == levels - 1))
    return Shares((count, len(found) - count))


def jump_levels(
    batch: int, levels: int = 7, share: float = 0.125, biased: bool = False
) -> np.ndarray:
    """The level of every row of a batch in `shortcut`, ``[batch]``.

    Of the ``n = int(share batch)`` rows that jump every level gets ``n // levels`` and
    the whole range, level 0, the remainder: with 7 levels 8 of 32. With ``biased`` the
    levels from 2 on get ``(n // 2) // levels`` each, the levels 1 and 0 ``n // 4``
    each, and level 0 the remainder. All other rows have the level ``levels``. Which
    rows of a batch have which level is free; here they are interleaved (see `Shares`).

    Args:
      batch: rows.
      levels: halvings from the whole range to the smallest step.
      share: share of the rows that jump.
      biased: see above.
    """
    rows = _jumping(batch, share)
    jumping = rows.counts[0]
    counts = np.full(levels, jumping // levels)
    if biased:
        counts = np.full(levels, jumping // 2 // levels)
        counts[:2] = jumping // 4
    counts[0] += jumping - counts.sum()
    out = np.full(batch, levels)
    if jumping:
        found = np.full(jumping, levels - 1)
        longer = np.repeat(np.arange(levels - 1), counts[:-1])
        last = Shares((int(counts[-1]), len(longer)))
        found[last.part() == 1] = longer
        out[rows.part() == 0] = found
    return out


def _standing(f: AffineFlowMap, rows: Array | bool) -> AffineFlowMap:
    """The map whose network is told ``s = t`` in some rows: there it is Euler's."""

    def output(x: Array, t: Array, s: Array) -> Array:
        return f.output(x, t, jnp.where(rows, t, s))

    return dataclasses.replace(f, output=output)


def _guided(
    f: AffineFlowMap, null: AffineFlowMap, scale: float, rows: Shares
) -> AffineFlowMap:
    """The map whose network output is guided in the first part of the rows.

    Args:
      f: map of all rows.
      null: map of the first part under the null condition.
      scale: guidance scale.
      rows: the parts.
    """

    def output(x: Array, t: Array, s: Array) -> Array:
        out = f.output(x, t, s)
        without = null.output(*rows.take(0, (x, t, s)))
        strong = fields.guide(rows.take(0, out), without, scale)
        return rows.join(strong, rows.take(1, out))

    return dataclasses.replace(f, output=output)


@dataclasses.dataclass(frozen=True)
class Smallest:
    """A shortcut student as it is sampled: the smallest steps are told ``s = t``.

    Attributes:
      grid: of the smallest steps.
      levels: their number is ``2^levels``.
    """

    grid: Grid
    levels: int

    def __call__(self, net: Bound, cond: Any, path: Path) -> AffineFlowMap:
        """The flow map of a bound network."""
        times = np.asarray(self.grid(2**self.levels, path), np.float32)
        centres = 0.5 * (times[1:] + times[:-1])
        f = net.flow_map(cond, path=path, two_time=True)

        def output(x: Array, t: Time, s: Time) -> Array:
            inside = (centres < jnp.asarray(t)[..., None]) & (
                centres > jnp.asarray(s)[..., None]
            )
            return f.output(x, t, jnp.where(jnp.sum(inside, -1) <= 1, t, s))

        return dataclasses.replace(f, output=output)
