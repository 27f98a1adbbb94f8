"""Pieces that several methods share: roles, noised points, critics, GAN terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distilljax.core.binding import Bound
from distilljax.core.context import Context
from distilljax.core.draws import Denoised, Guidance, Jump, Part, Rollout, Scales
from distilljax.core.method import Phase, Role, Term
from distilljax.diffusion.clocks import ByPath
from distilljax.diffusion.fields import Field, guided
from distilljax.diffusion.paths import Path, Time, expand
from distilljax.diffusion.predictions import Prediction, convert, kind_of
from distilljax.diffusion.times import AngleGrid, Law

Array = jax.Array
sg = jax.lax.stop_gradient

TEACHER = Role(init="given")
# Generation from ``sigma/alpha = 2.5`` on: SiD's ``sigma_init`` for EDM, timestep 625
# of SiD-LSG for Stable Diffusion; that is 0.758 of the noise angle. From pure noise a
# student that begins as the teacher's denoiser makes all samples near the mean of the
# data; where modes lie far apart, matching then takes all of them to one mode.
BELOW_NOISE = ByPath(AngleGrid(0.758), edm=AngleGrid(ratio=2.5))
# Draws that can say from which time a sample was made.
TIMED = (Rollout, Denoised, Jump)


def path_of(ctx: Context, path: Path | None, role: str = "student") -> Path:
    """The path of a method, or that of a role's network."""
    return ctx.nets[role].path if path is None else path


def guidance_needs(guidance: Guidance) -> frozenset[str]:
    """What a network must have for a guidance scale, or for several of them."""
    return frozenset() if guidance == 1 else frozenset({"null"})


def scale_of(ctx: Context, guidance: Guidance) -> Any:
    """The guidance scale: that which the student is told, else one drawn per sample."""
    if "guidance" in ctx.data:
        return ctx.data["guidance"]
    return guidance if isinstance(guidance, (int, float)) else Scales(guidance)(ctx)


class Telling(NamedTuple):
    """What a student wants that is told guidance scales.

    Attributes:
      draws: of the phases that call it, see `Context.told`.
      needs: of its network.
      default: the scale of its sampler, None if it is told none.
    """

    draws: dict[str, Any]
    needs: frozenset[str]
    default: float | None


def telling(scales: Guidance | None) -> Telling:
    """What it takes to tell a student scales; nothing for None."""
    if scales is None:
        return Telling({}, frozenset(), None)
    draw = Scales(scales)
    return Telling({"guidance": draw}, frozenset({"guidance"}), draw.middle)


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


def twin_phases(
    critic: tuple[Term, ...],
    student: tuple[Term, ...],
    draws: Mapping[str, Any],
    critic_steps: int,
    trains: tuple[str, ...] = ("fake_score",),
) -> tuple[Phase, Phase]:
    """Updates of the critic, then one of the student, on samples drawn alike.

    Args:
      critic: terms of the critic's phase, which is called ``trains[0]``.
      student: terms of the student's.
      draws: of both.
      critic_steps: critic updates per student update.
      trains: roles that the critic's phase trains.
    """
    return (
        Phase(trains[0], trains, critic, draws, repeat=critic_steps),
        Phase("student", ("student",), student, draws),
    )


def told_field(
    ctx: Context,
    role: str,
    kind: str | Prediction,
    path: Path,
    told: Array | None,
    guidance: float = 1.0,
) -> Field:
    """A network as a field that is told a time of the sample as its second time.

    Args:
      ctx: with the role.
      role: the network; one with a second time if it is told one.
      kind: kind wanted.
      path: path on which the field is called.
      told: the time ``[B]``, None for the plain field.
      guidance: scale of the field, 1 for none.
    """
    net = ctx.nets[role]
    if told is None:
        return net.guided(ctx.data, guidance, kind=kind, path=path)

    def under(cond: Any) -> Field:
        f = net.flow_map(cond, path=path, two_time=True)

        def field(x: Array, t: Time) -> Array:
            return convert(path, f.output(x, t, told), x, t, f.kind, kind_of(kind))

        return field

    if guidance == 1:
        return under(ctx.cond)
    return guided(under(ctx.cond), under(net.null_condition(ctx.data)), guidance)


def student_draws(
    draw: Callable[[Context], Any], told_start: bool
) -> tuple[dict[str, Any], frozenset[str]]:
    """Draws of a student's samples ``x``, and what their critics need.

    Args:
      draw: how they are made.
      told_start: whether fake score and discriminator are told the times from which
        they were made; they are then the field ``x_start``.

    Raises:
      ValueError: if the draw cannot say them.
    """
    if not told_start:
        return {"x": draw}, frozenset()
    if not isinstance(draw, TIMED):
        raise ValueError(
            "told_start=True wants a draw that says from which times its samples were "
            f"made, {', '.join(kind.__name__ for kind in TIMED)}; got {draw!r}"
        )
    timed = dataclasses.replace(draw, timed=True)
    parts = {"x": Part("made", "x0"), "x_start": Part("made", "t")}
    return {"made": timed, **parts}, frozenset({"second_time"})


def twin_predictions(
    ctx: Context,
    x_t: Array,
    t: Array,
    path: Path,
    guidance: float,
    fake_guidance: float = 1.0,
) -> tuple[Array, Array]:
    """``(D_real, D_fake)``: predictions of the guided teacher and the fake score.

    The fake score is told where the sample was made from if the data say that, see
    `student_draws`; it is guided by SiD-LSG and TSD-SR alone.
    """
    real = ctx.nets.teacher.guided(ctx.data, guidance, path=path)(x_t, t)
    told = ctx.data.get("x_start")
    fake = told_field(ctx, "fake_score", "x0", path, told, fake_guidance)(x_t, t)
    return real, fake


def noised(
    ctx: Context, x: Array, law: Law, path: Path, suffix: str = ""
) -> tuple[Array, Array, Array]:
    """``(x_t, t, eps)`` of a sample under a time law."""
    t = ctx.times(f"t{suffix}", law, path)
    eps = ctx.normal(f"eps{suffix}", x)
    return path.noise(x, eps, t), t, eps


def dropped(
    ctx: Context, net: Bound, share: float, chances: Array | None = None
) -> tuple[Any, Array | None]:
    """The condition with a random share replaced by the null condition.

    Args:
      ctx: of the term; the draw is called ``drop``.
      net: network whose null condition it is.
      share: mean share of the samples, 0 for none.
      chances: chance of every sample ``[B]``, default ``share``. A draw of exactly 0,
        one in eight million, drops any sample.

    Returns:
      ``(condition, dropped [B] bool)``; the second is None if nothing is dropped.
    """
    cond = ctx.cond
    if cond is None or share == 0:
        return cond, None
    chances = share if chances is None else jnp.maximum(chances, 1e-7)
    drop = ctx.uniform("drop") < chances
    return chosen(drop, net.null_condition(ctx.data), cond), drop


def chosen(on: Array, a: Any, b: Any) -> Any:
    """Condition ``a`` of the samples where ``on [B]``, ``b`` of the others."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(on.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, a, b)


@dataclasses.dataclass(frozen=True)
class RatioMeans:
    """Memory ``ratio_means``: a running mean per bin of time, 1 at first."""

    bins: int

    def __call__(
        self, batch_size: int, sample_shape: tuple[int, ...]
    ) -> dict[str, Array]:
        return {"ratio_means": jnp.ones((self.bins,), jnp.float32)}


def binned_means(
    means: Array, values: Array, share: Array, decay: float
) -> tuple[Array, Array]:
    """Running means of values over bins.

    Args:
      means: of the bins so far, ``[bins]``.
      values: new values ``[B]``.
      share: where each lies, ``[B]`` in [0, 1]; bins are equal parts of it.
      decay: of the means; a bin without a value keeps its own.

    Returns:
      The new means, and that of the bin of each value, ``[B]``.
    """
    bins = means.shape[0]
    index = jnp.clip((share * bins).astype(jnp.int32), 0, bins - 1)
    member = jax.nn.one_hot(index, bins, dtype=values.dtype)
    count = jnp.sum(member, axis=0)
    now = jnp.sum(member * values[:, None], axis=0) / jnp.maximum(count, 1.0)
    new = jnp.where(count > 0, decay * means + (1.0 - decay) * now, means)
    return new, member @ new


def per_sample_norm(x: Array) -> Array:
    """Root mean square over everything but the batch, ``[B]``."""
    return jnp.sqrt(jnp.mean(x.astype(jnp.float32) ** 2, axis=tuple(range(1, x.ndim))))


def prior_weight(path: Path, t: Array, own: Path | None = None) -> Array:
    """``alpha / sigma`` at ``t``: the ``1/(sigma_d tan t)`` of TrigFlow codes.

    With ``own`` it is ``1 / sigma`` of that path at the same noise level.
    """
    t = expand(t, t)
    if own is not None:
        u = own.time_of_angle(path.angle(t))
        return 1.0 / jnp.maximum(own.sigma(u), 1e-4)
    return path.alpha(t) / jnp.maximum(path.sigma(t), 1e-4)
