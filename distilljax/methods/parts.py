"""Pieces that several methods share: roles, noised points, critics, GAN terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.binding import Bound
from distilljax.context import Context
from distilljax.method import Role, Term
from distilljax.paths import Path, expand
from distilljax.times import Law, Schedule

Array = jax.Array
sg = jax.lax.stop_gradient

TEACHER = Role(init="given")


def path_of(ctx: Context, path: Path | None, role: str = "student") -> Path:
    """The path of a method, or that of a role's network."""
    return ctx.nets[role].path if path is None else path


def guidance_needs(guidance: float | tuple[float, float]) -> frozenset[str]:
    """What a network must have for a guidance scale, or a range of them."""
    return frozenset() if guidance == 1 else frozenset({"null"})


def twin_roles(
    *, guidance: float = 1.0, fake_needs: frozenset[str] = frozenset(), **extra: Role
) -> dict[str, Role]:
    """Student, frozen teacher and fake score, both started from the teacher."""
    return {
        "student": Role(),
        "teacher": TEACHER._replace(needs=guidance_needs(guidance)),
        "fake_score": Role(needs=fake_needs),
        **extra,
    }


def noised(
    ctx: Context, x: Array, law: Law, path: Path, suffix: str = ""
) -> tuple[Array, Array, Array]:
    """``(x_t, t, eps)`` of a sample under a time law."""
    t = ctx.times(f"t{suffix}", law, path)
    eps = ctx.normal(f"eps{suffix}", x)
    return path.noise(x, eps, t), t, eps


def dropped(ctx: Context, net: Bound, share: float) -> tuple[Any, Array | None]:
    """The condition with a random share replaced by the null condition.

    Returns:
      ``(condition, dropped [B] bool)``; the second is None if nothing is dropped.
    """
    cond = ctx.cond
    if cond is None or share == 0:
        return cond, None
    null = net.null_condition(ctx.data)
    drop = ctx.uniform("drop") < share

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(drop.reshape((-1,) + (1,) * (a.ndim - 1)), b, a)

    return jax.tree.map(pick, cond, null), drop


def fit_score(
    role: str, sample: str, law: Law, path: Path | None, weight: Schedule = 1.0
) -> Term:
    """Term that fits a score network to the student's samples by flow matching.

    ``|v_psi(x_t, t) - (alpha' x + sigma' eps)|^2 / 2`` on ``x_t`` noised from the
    detached sample; on TrigFlow the denoiser loss over ``sin^2 t`` (rCM).

    Args:
      role: network that is fitted.
      sample: data field with the student's samples.
      law: times, over the full range.
      path: path; default the role's network's.
      weight: weight of the term.
    """

    def loss(ctx: Context) -> Array:
        p = path_of(ctx, path, role)
        x = sg(ctx.data[sample])
        x_t, t, eps = noised(ctx, x, law, p)
        v = ctx.nets[role].velocity(ctx.cond, path=p)(x_t, t)
        return losses.regress(losses.toward(v, p.velocity(x, eps, t)))

    return Term("fit", loss, weight)


def logits_at(ctx: Context, x: Array, law: Law, path: Path, suffix: str = "") -> Array:
    """Discriminator logits on the fake score's features at a re-noised sample."""
    x_t, t, _ = noised(ctx, x, law, path, suffix)
    _, taps = ctx.nets.fake_score.denoised_and_taps(ctx.cond, x_t, t, path=path)
    return ctx.nets.discriminator.call("logits", taps, t / path.t_max, ctx.cond)


def fool(
    law: Law,
    path: Path | None,
    weight: Schedule,
    value: Callable[[Array], Array] = losses.generator_nonsaturating,
) -> Term:
    """Generator side of the diffusion GAN; gradient through the features' input."""

    def loss(ctx: Context) -> Array:
        p = path_of(ctx, path)
        return value(logits_at(ctx, ctx.data["x"], law, p))

    return Term("fool", loss, weight)


def tell_apart(
    law: Law,
    path: Path | None,
    weight: Schedule,
    value: Callable[[Array, Array], Array] = losses.discriminator_nonsaturating,
) -> Term:
    """Discriminator side: real data against detached student samples, both noised."""

    def loss(ctx: Context) -> Array:
        p = path_of(ctx, path)
        fake = logits_at(ctx, sg(ctx.data["x"]), law, p, "_fake")
        real = logits_at(ctx, ctx.data["x0"], law, p, "_real")
        return value(real, fake)

    return Term("tell_apart", loss, weight)


def per_sample_norm(x: Array) -> Array:
    """Root mean square over everything but the batch, ``[B]``."""
    return jnp.sqrt(jnp.mean(x.astype(jnp.float32) ** 2, axis=tuple(range(1, x.ndim))))


def prior_weight(path: Path, t: Array) -> Array:
    """``alpha / sigma`` at ``t``: the ``1/(sigma_d tan t)`` of TrigFlow codes."""
    t = expand(t, t)
    return path.alpha(t) / jnp.maximum(path.sigma(t), 1e-4)
