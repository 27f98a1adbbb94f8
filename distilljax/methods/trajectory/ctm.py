"""Consistency trajectory models: jumps of any length that agree."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import Part
from distilljax.core.method import (
    Citation,
    Follow,
    Method,
    Phase,
    Role,
    Sampling,
    Stage,
    Term,
    check,
)
from distilljax.diffusion.clocks import KarrasUniform
from distilljax.diffusion.paths import Path
from distilljax.diffusion.predictions import recompose
from distilljax.diffusion.sampler import Deterministic, Renoise
from distilljax.diffusion.solvers import Heun, Solver, solve
from distilljax.diffusion.times import (
    Cycles,
    Grid,
    KarrasPoints,
    Law,
    LogNormal,
    Mixture,
    Schedule,
    Uniform,
    value_at,
)
from distilljax.losses import transforms
from distilljax.losses.metrics import Metric, half_mse
from distilljax.methods.gan import feature_roles, fool, tell_apart
from distilljax.methods.parts import TEACHER, guidance_needs, noised, path_of
from distilljax.methods.registry import register
from distilljax.methods.weights import LevelWeight, constant, noise_ratio
from distilljax.runtime.axes import looked_up

Array = jax.Array

CTM = Citation(
    "ctm",
    "Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of "
    "Diffusion",
    "Kim, Lai, Liao, Murata, Takida, Uesaka, He, Mitsufuji, Ermon",
    2023,
    "arXiv:2310.02279",
)

# Times of the denoising term in the released code.
DENOISED = Mixture(((0.5, LogNormal(-1.2, 1.2)), (0.5, KarrasUniform(0.3, 1.0, None))))


@dataclasses.dataclass(frozen=True)
class Share:
    """Length of a term's gradient in a `Balanced` sum.

    Attributes:
      name: name of the term.
      weight: length in units of the leading gradient, over cycles.
      low: smallest factor that makes it as long as the leading one.
      high: largest such factor.
    """

    name: str
    weight: Schedule = 1.0
    low: float = 0.0
    high: float = 1e4


@dataclasses.dataclass(frozen=True)
class Balanced:
    """Sum of gradients whose lengths are shares of the leading term's.

    Each other gradient ``g`` is multiplied by ``weight clip(|g_lead| / (|g| + 1e-4),
    low, high)``.

    Attributes:
      lead: name of the leading term.
      shares: of the other terms.
    """

    lead: str
    shares: tuple[Share, ...]

    def __call__(self, grads: Mapping[str, Any], step: Array) -> Any:
        total = grads[self.lead]
        size = _norm(total)
        for share in self.shares:
            ratio = size / (_norm(grads[share.name]) + 1e-4)
            factor = value_at(share.weight, step) * jnp.clip(
                ratio, share.low, share.high
            )
            total = jax.tree.map(
                lambda a, b, w=factor: a + w.astype(b.dtype) * b,
                total,
                grads[share.name],
            )
        return total


def _norm(tree: Any) -> Array:
    squares = [jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(functools.reduce(operator.add, squares))


@dataclasses.dataclass(frozen=True)
class Ends:
    """Where two jumps of the student end, from ``t`` and from a part of the way on.

    With ``u`` the time after ``j`` solver steps of the teacher from ``t``, ``s``
    anywhere below and ``e`` the last time of the grid, ``{"estimate": f^-(f(x_t, t, s),
    s, e), "target": f^-(f(x_u, u, s), s, e), "t": t, "s": s}``; see `ctm` for the
    attributes.
    """

    segments: int
    grid: Grid
    solver: Solver
    guidance: float
    path: Path | None
    most_hops: int | None

    def __call__(self, ctx: Context) -> dict[str, Array]:
        way = path_of(ctx, self.path)
        times = jnp.asarray(self.grid(self.segments, way))
        hops = _hops(ctx, self.most_hops or self.segments)
        first = _uniform_index(ctx, "first", 0, self.segments - hops)
        last = _uniform_index(ctx, "last", first + hops, self.segments)
        t, u, s = (looked_up(times, at) for at in (first, first + hops, last))
        kind = ctx.nets.teacher.kind
        field = ctx.nets.teacher.guided(ctx.data, self.guidance, kind=kind, path=way)

        def advance(k: Array, x: Array) -> Array:
            ends = jnp.stack([looked_up(times, first + k + i) for i in (0, 1)])
            return solve(field, x, ends, path=way, solver=self.solver, kind=kind)

        x_t = way.noise(ctx.data["x0"], ctx.normal("eps"), t)
        x_u = jax.lax.fori_loop(0, hops, advance, x_t)
        f, outer = (
            net.flow_map(ctx.cond, path=way, two_time=True)
            for net in (ctx.nets.student, ctx.nets.target.like(ctx.nets.student))
        )
        return {
            "estimate": outer(f(x_t, t, s), s, times[-1]),
            "target": outer(f(x_u, u, s), s, times[-1]),
            "t": t,
            "s": s,
        }


@register(
    family="trajectory",
    cite=CTM,
    summary="jumps between any times agree after a part of the way by the teacher",
)
def ctm(
    *,
    segments: int = 17,
    grid: Grid = KarrasPoints(),
    solver: Solver = Heun(),
    most_hops: int | None = None,
    metric: Metric = half_mse,
    weight: LevelWeight = constant,
    guidance: float = 1.0,
    target_decay: Schedule = 0.999,
    dsm_weight: float = 1.0,
    dsm_law: Law = DENOISED,
    gan_weight: Schedule = 0.0,
    gan_start: Cycles = 10_000,
    gan_law: Law = Uniform(),
    features: str | None = "teacher",
    balance: bool = True,
    path: Path | None = None,
    renoise: Renoise = Deterministic(),
) -> Method:
    """CTM: jumps of any length agree after the teacher has gone a part of the way.

    With the `Ends` of two jumps

        d( f^-(f(x_t, t, s), s, e), sg f^-(f(x_u, u, s), s, e) ) + dsm_weight L_DSM
        + gan_weight L_GAN,

    ``e`` the last time of the grid: ``sigma_min`` on EDM, 0 elsewhere. The outer map
    has the target's parameters and passes the gradient to its input (the released code;
    taking it as a constant would leave nothing to train). ``L_DSM`` regresses the
    output at ``s = t`` on data and noise; on the EDM path its unit weight is EDM's.
    ``L_GAN = -D`` of the first end, under a hinge discriminator that is updated in turn
    with the student.

    Args:
      segments: grid segments, 17 for the 18 points of CIFAR-10, 39 on ImageNet-64;
        ``j`` runs from 1 to it.
      grid: times ``t, u, s`` are taken from, also the sampler's; the paper's are Karras
        with rho 7 from 80 to ``sigma_min``.
      solver: solver of the teacher's steps. One ``j`` serves the batch, as in the
        released code, with probability proportional to ``j``; the mean cost is
        ``(2 segments + 1) / 3`` steps.
      most_hops: largest ``j``; default ``segments``.
      metric: ``d``; LPIPS in the paper, see `metrics.FeatureMetric`.
      weight: of ``d`` at the levels of ``t`` and ``s``, see `methods.weights`.
      guidance: scale ``w`` of the teacher.
      target_decay: EMA decay of the target network.
      dsm_weight: weight of the denoising term; 0 leaves it out.
      dsm_law: its times; as in the released code one half is log-normal, and one has a
        Karras index in the noisier 70 %.
      gan_weight: weight of the adversarial term; the number 0 leaves it out.
      gan_start: cycles without it; 10 000 to 50 000 in the paper.
      gan_law: times of the noise at which a diffusion network's features are judged.
      features: what the discriminator sees: the taps of ``teacher`` at re-noised
        samples; features of a role of this name that is given, a network with the
        function ``encode(params, x)`` on clean samples (the paper's are pretrained on
        images); or with None the samples themselves.
      balance: whether the two weights count in units of the first term's gradient
        (norms over all parameters; the released code looks at the last layer's).
        Factors are at most 1e4, those of the adversarial term lie in [0.01, 10].
      path: path; default the student's network's, EDM in the paper.
      renoise: rule of the sampler; `sampling.Gamma` is the paper's gamma sampling.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student with a second time,
      teacher, target; discriminator and the features' role.
    """
    if most_hops is not None and not 1 <= most_hops <= segments:
        raise ValueError(
            f"most_hops must lie in 1 .. segments = {segments}, got {most_hops}"
        )
    ends = Ends(segments, grid, solver, guidance, path, most_hops)
    draws = {"ends": ends}

    def agree(ctx: Context) -> Array:
        ends, way = ctx.data["ends"], path_of(ctx, path)
        c = losses.toward(ends["estimate"], ends["target"])
        levels = (noise_ratio(way, ends[name]) for name in ("t", "s"))
        return losses.regress(transforms.scale(c, weight(*levels, way.sigma_d)), metric)

    def denoise(ctx: Context) -> Array:
        way = path_of(ctx, path)
        x0 = ctx.data["x0"]
        x_t, t, eps = noised(ctx, x0, dsm_law, way)
        f = ctx.nets.student.flow_map(ctx.cond, path=way, two_time=True)
        wanted = recompose(way, f.kind, x0, eps, t)
        return losses.regress(losses.toward(f.output(x_t, t, t), wanted))

    def phase(terms: tuple[Term, ...], shares: tuple[Share, ...], **more: Any) -> Phase:
        merge = Balanced("agree", shares) if balance and shares else None
        return Phase("student", ("student",), terms, {**draws, **more}, merge=merge)

    terms, shares = (Term("agree", agree),), ()
    if dsm_weight:
        terms += (Term("denoise", denoise, 1.0 if balance else dsm_weight),)
        shares += (Share("denoise", dsm_weight),)
    phases, stages = (phase(terms, shares),), ()
    needs = frozenset({"second_time"})
    follow = Follow("student", target_decay)
    roles = {
        "student": Role(needs=needs),
        "teacher": TEACHER._replace(needs=guidance_needs(guidance)),
        "target": Role(init="student", follow=follow, needs=needs),
    }
    if not (isinstance(gan_weight, (int, float)) and gan_weight == 0):
        stages = (Stage(gan_start, phases),) if gan_start else ()
        deceive = fool(
            gan_law,
            path,
            1.0 if balance else gan_weight,
            losses.generator_hinge,
            features,
        )
        detect = tell_apart(gan_law, path, 1.0, losses.discriminator_hinge, features)
        end = Part("ends", "estimate")
        judged = {**draws, "x": end}
        shares += (Share("fool", gan_weight, 0.01, 10.0),)
        critic = Phase("discriminator", ("discriminator",), (detect,), judged)
        phases = (critic, phase((*terms, deceive), shares, x=end))
        roles = feature_roles(roles, features)
    return check(
        Method(
            name="ctm",
            roles=roles,
            phases=phases,
            sampling=Sampling(grid, renoise, path, two_time=True),
            stages=stages,
            cite=(CTM,),
        )
    )


def _hops(ctx: Context, most: int) -> Array:
    """A number of steps ``1 .. most`` for the batch, likely in proportion to it."""
    counts = jnp.arange(1, most + 1)
    return jax.random.choice(ctx.key("hops"), counts, p=counts / jnp.sum(counts))


def _uniform_index(
    ctx: Context, name: str, low: Array | int, high: Array | int
) -> Array:
    """Integers ``[B]``, uniform from ``low`` to ``high`` inclusive."""
    span = jnp.asarray(high - low + 1)
    step = jnp.floor(ctx.uniform(name) * span).astype(jnp.int32)
    return low + jnp.minimum(step, span - 1)
