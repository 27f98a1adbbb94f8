"""The diffusion GAN that several methods share: discriminator, its terms and roles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.method import Role, Term
from distilljax.diffusion.paths import Path
from distilljax.diffusion.times import Law, Schedule
from distilljax.methods.parts import noised, path_of
from distilljax.runtime.axes import untyped

Array = jax.Array
sg = jax.lax.stop_gradient


def feature_roles(
    roles: Mapping[str, Role],
    features: str | None,
    needs: frozenset[str] = frozenset(),
    kind: str | None = None,
) -> dict[str, Role]:
    """Roles with a discriminator on the features of one of them, see `judged`.

    Args:
      roles: of the method.
      features: one of them, which then needs taps; the name of a role to be given; None
        for the samples themselves.
      needs: what the discriminator must have, see `student_draws`.
      kind: of the discriminator on an image network, see `networks.head`; one that is
        told times is pooled.
    """
    arguments = {} if kind is None or needs else {"kind": kind}
    head = Role("discriminator", init="random", needs=needs, arguments=arguments)
    out = {**roles, "discriminator": head}
    if features is not None:
        role = roles.get(features)
        out[features] = (
            Role(features, init="given")
            if role is None
            else role._replace(needs=role.needs | {"taps"})
        )
    return out


def _sees_clean(ctx: Context, trunk: str | None) -> bool:
    return trunk is None or "encode" in ctx.nets[trunk].network.functions


def shown(
    ctx: Context, x: Array, law: Law, path: Path, suffix: str, trunk: str | None
) -> tuple[Array, Array]:
    """``(point, time)`` at which a trunk sees a sample: noised, or clean at 0."""
    if _sees_clean(ctx, trunk):
        return x, ctx.zeros()
    return noised(ctx, x, law, path, suffix)[:2]


def judged(
    ctx: Context, x_t: Array, t: Array, path: Path, trunk: str | None = "fake_score"
) -> tuple[Array, Array]:
    """``(denoiser prediction, logits)`` of a trunk at a point, in one evaluation.

    The discriminator is told where the sample of a place in the batch was made from if
    the data say that, see `student_draws`; real data are held against that sample.

    Args:
      ctx: with the role ``discriminator``.
      x_t: the point.
      t: its time.
      path: path of both.
      trunk: role whose taps are judged; one with a function ``encode(params, x)`` is
        asked for the features of a clean sample, and None judges that itself.
    """
    if _sees_clean(ctx, trunk):
        denoised = x_t
        features = x_t if trunk is None else ctx.nets[trunk].call("encode", x_t)
    else:
        net = ctx.nets[trunk]
        denoised, features = net.denoised_and_taps(ctx.cond, x_t, t, path=path)
    start = ctx.data.get("x_start")
    told = () if start is None else (start / path.t_max,)
    logits = ctx.nets.discriminator.call(
        "logits", features, t / path.t_max, ctx.cond, *told
    )
    return denoised, logits


def logits_at(
    ctx: Context,
    x: Array,
    law: Law,
    path: Path,
    suffix: str = "",
    trunk: str | None = "fake_score",
) -> Array:
    """Discriminator logits of a sample, on a trunk's features; see `judged`."""
    return judged(ctx, *shown(ctx, x, law, path, suffix, trunk), path, trunk)[1]


@dataclasses.dataclass(frozen=True)
class Fool:
    """Generator side of the diffusion GAN; gradient through the features' input.

    Attributes:
      law: times of the noise.
      path: path; default the student's network's.
      value: loss of the logits.
      trunk: role whose features are judged, see `judged`.
    """

    law: Law
    path: Path | None
    value: Callable[[Array], Array]
    trunk: str | None

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        trunk = () if self.trunk is None else (self.trunk,)
        return ("discriminator", *trunk)

    def __call__(self, ctx: Context) -> Array:
        p, x = path_of(ctx, self.path), ctx.data["x"]
        return self.value(logits_at(ctx, x, self.law, p, trunk=self.trunk))


def fool(
    law: Law,
    path: Path | None,
    weight: Schedule,
    value: Callable[[Array], Array] = losses.generator_nonsaturating,
    trunk: str | None = "fake_score",
) -> Term:
    """The term of a `Fool` under a weight."""
    return Term("fool", Fool(law, path, value, trunk), weight)


@dataclasses.dataclass(frozen=True)
class TellApart:
    """Discriminator side: real data against detached student samples, both noised.

    Attributes:
      law: times of the noise.
      path: path; default the student's network's.
      value: loss of the logits of both.
      trunk: role whose features are judged, see `judged`.
      misaligned: counts the data under their neighbour's condition as fake too, half of
        the fakes, under noise and times of their own; couples the samples of a batch.
    """

    law: Law
    path: Path | None
    value: Callable[[Array, Array], Array]
    trunk: str | None
    misaligned: bool

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        trunk = () if self.trunk is None else (self.trunk,)
        return ("discriminator", *trunk)

    def __call__(self, ctx: Context) -> Array:
        law, trunk, p = self.law, self.trunk, path_of(ctx, self.path)
        fake = logits_at(ctx, sg(ctx.data["x"]), law, p, "_fake", trunk)
        x_t, t = shown(ctx, ctx.data["x0"], law, p, "_real", trunk)
        real = judged(ctx, x_t, t, p, trunk)[1]
        values = self.value(real, fake)
        if not self.misaligned or ctx.cond is None:
            return values
        x0 = ctx.data["x0"]
        moved = untyped(_next, x0)(x0)
        other, t_other = shown(ctx, moved, law, p, "_misaligned", trunk)
        rolled = judged(ctx, other, t_other, p, trunk)[1]
        return 0.5 * (values + self.value(real, rolled))


def tell_apart(
    law: Law,
    path: Path | None,
    weight: Schedule,
    value: Callable[[Array, Array], Array] = losses.discriminator_nonsaturating,
    trunk: str | None = "fake_score",
    misaligned: bool = False,
) -> Term:
    """The term of a `TellApart` under a weight."""
    loss = TellApart(law, path, value, trunk, misaligned)
    return Term("tell_apart", loss, weight, coupled=misaligned)


def _next(rows: Array) -> Array:
    return jnp.roll(rows, 1, 0)
