"""Students of the teacher's trajectories: CTM, progressive distillation, reflow."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distilljax import losses, transforms
from distilljax.context import Context
from distilljax.draws import TeacherTrajectory
from distilljax.flow_maps import AffineFlowMap
from distilljax.method import (
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
from distilljax.methods.parts import TEACHER, guidance_needs, noised, path_of
from distilljax.metrics import Metric, half_mse
from distilljax.paths import Path
from distilljax.predictions import decompose, recompose
from distilljax.sampling import Deterministic, Renoise
from distilljax.solvers import Heun, Solver, solve
from distilljax.times import (
    EvenGrid,
    Grid,
    KarrasGrid,
    Law,
    LogNormal,
    Schedule,
    Switch,
    Uniform,
)

Array = jax.Array
sg = jax.lax.stop_gradient

CTM = Citation(
    "ctm",
    "Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of "
    "Diffusion",
    "Kim, Lai, Liao, Murata, Takida, Uesaka, He, Mitsufuji, Ermon",
    2023,
    "arXiv:2310.02279",
)
PROGRESSIVE = Citation(
    "progressive",
    "Progressive Distillation for Fast Sampling of Diffusion Models",
    "Salimans, Ho",
    2022,
    "arXiv:2202.00512",
    "Algorithm 2",
)
REFLOW = Citation(
    "reflow",
    "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified "
    "Flow",
    "Liu, Gong, Liu",
    2022,
    "arXiv:2209.03003",
    "eq. 1, Algorithm 1",
)


@dataclasses.dataclass(frozen=True)
class Balanced:
    """Sum of gradients in which the others are as long as the leading term's.

    Each other gradient is multiplied by ``scale`` times ``|g_lead| / (|g| + 1e-4)``, a
    ratio of at most ``limit``.

    Attributes:
      lead: name of the leading term.
      scale: length of the others in units of the leading gradient.
      limit: largest ratio.
    """

    lead: str
    scale: float = 1.0
    limit: float = 1e4

    def __call__(self, grads: Mapping[str, Any], step: Array) -> Any:
        total = grads[self.lead]
        size = _norm(total)
        for name in sorted(set(grads) - {self.lead}):
            ratio = jnp.minimum(size / (_norm(grads[name]) + 1e-4), self.limit)
            total = jax.tree.map(
                lambda a, b, w=self.scale * ratio: a + w.astype(b.dtype) * b,
                total,
                grads[name],
            )
        return total


def _norm(tree: Any) -> Array:
    squares = [jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(functools.reduce(operator.add, squares))


def ctm(
    *,
    segments: int = 17,
    grid: Grid = KarrasGrid(),
    solver: Solver = Heun(),
    metric: Metric = half_mse,
    guidance: float = 1.0,
    target_decay: Schedule = 0.999,
    dsm_weight: float = 1.0,
    dsm_law: Law = LogNormal(-1.2, 1.2),
    balance: bool = True,
    path: Path | None = None,
    renoise: Renoise = Deterministic(),
) -> Method:
    """CTM: jumps of any length agree after the teacher has gone a part of the way.

    With ``u`` the time after ``j`` solver steps of the teacher from ``t`` and ``s``
    anywhere below,

        d( f^-(f(x_t, t, s), s, 0), sg f^-(f(x_u, u, s), s, 0) ) + dsm_weight L_DSM.

    The outer map has the target's parameters and passes the gradient to its input (the
    released code; taking it as a constant would leave nothing to train). ``L_DSM``
    regresses the output at ``s = t`` on data and noise; on the EDM path its unit weight
    is EDM's. The paper's adversarial term, which it adds after 10 000 cycles or more,
    needs a discriminator on pretrained features and is left out.

    Args:
      segments: grid segments; ``j`` runs from 1 to it.
      grid: times ``t, u, s`` are taken from, also the sampler's; the paper's is Karras
        with rho 7.
      solver: solver of the teacher's steps. One ``j`` serves the batch, as in the
        released code, with probability proportional to ``j``; the mean cost is
        ``(2 segments + 1) / 3`` steps.
      metric: ``d``; LPIPS in the paper, see `metrics.FeatureMetric`.
      guidance: scale ``w`` of the teacher.
      target_decay: EMA decay of the target network.
      dsm_weight: weight of the denoising term; 0 leaves it out.
      dsm_law: its times; the released code mixes a half-log-normal with a uniform law.
      balance: whether ``dsm_weight`` counts in units of the first term's gradient
        (norms over all parameters; the released code looks at the last layer's).
      path: path; default the student's network's, EDM in the paper.
      renoise: rule of the sampler; `sampling.Gamma` is the paper's gamma sampling.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student with a second time,
      teacher, target.
    """

    def agree(ctx: Context) -> Array:
        way = path_of(ctx, path)
        times = jnp.asarray(grid(segments, way), jnp.float32)
        hops = _hops(ctx, segments)
        first = _uniform_index(ctx, "first", 0, segments - hops)
        last = _uniform_index(ctx, "last", first + hops, segments)
        t, u, s = times[first], times[first + hops], times[last]
        kind = ctx.nets.teacher.kind
        field = ctx.nets.teacher.guided(ctx.data, guidance, kind=kind, path=way)

        def advance(k: Array, x: Array) -> Array:
            ends = jnp.stack([times[first + k], times[first + k + 1]])
            return solve(field, x, ends, path=way, solver=solver, kind=kind)

        x_t = way.noise(ctx.data["x0"], ctx.normal("eps"), t)
        x_u = jax.lax.fori_loop(0, hops, advance, x_t)
        f, outer = (
            ctx.nets[role].flow_map(ctx.cond, path=way, two_time=True)
            for role in ("student", "target")
        )
        estimate = outer(f(x_t, t, s), s, 0.0)
        c = losses.toward(estimate, outer(f(x_u, u, s), s, 0.0))
        return losses.regress(c, metric)

    def denoise(ctx: Context) -> Array:
        way = path_of(ctx, path)
        x0 = ctx.data["x0"]
        x_t, t, eps = noised(ctx, x0, dsm_law, way)
        f = ctx.nets.student.flow_map(ctx.cond, path=way, two_time=True)
        wanted = recompose(way, f.kind, x0, eps, t)
        return losses.regress(losses.toward(f.output(x_t, t, t), wanted))

    needs = frozenset({"second_time"})
    follow = Follow("student", target_decay)
    terms, merge = (Term("agree", agree),), None
    if dsm_weight:
        terms += (Term("denoise", denoise, 1.0 if balance else dsm_weight),)
        merge = Balanced("agree", dsm_weight) if balance else None
    return check(
        Method(
            name="ctm",
            roles={
                "student": Role(needs=needs),
                "teacher": TEACHER._replace(needs=guidance_needs(guidance)),
                "target": Role(init="student", follow=follow, needs=needs),
            },
            phases=(Phase("student", ("student",), terms, merge=merge),),
            sampling=Sampling(grid, renoise, path, two_time=True),
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


def progressive(
    *,
    steps: tuple[int, ...] = (8, 4, 2, 1),
    round_cycles: int = 1000,
    grid: Grid = EvenGrid(),
    truncated: bool = True,
    guidance: float = 1.0,
    path: Path | None = None,
) -> Method:
    """Progressive distillation: one student step equals two DDIM steps of its teacher.

    In the round of ``N`` steps a step ``t -> s`` of the grid is drawn, the teacher
    jumps ``t -> m -> s``, and the student's single DDIM step must end there (Algorithm
    2). After ``round_cycles`` the student is the teacher of the next round, with the
    next entry of ``steps``; the last round lasts to the end. On the linear path the
    target is the mean of the two velocities: `shortcut` without a step size.

    The optimizer goes on between rounds; the paper anneals the learning rate to 0 in
    each (``schedule`` with ``restart``).

    Args:
      steps: steps of the student in each round; each half of the one before. The
        teacher of the first round takes twice the first.
      round_cycles: cycles of a round.
      grid: time grid of ``N`` steps; that of ``2 N`` must hold its times, as even
        steps do.
      truncated: weight ``max(SNR, 1)`` on ``x0``, the larger of the errors of ``x0``
        and ``eps``; False weighs the network's output plainly, which on VP with v is
        ``SNR + 1``.
      guidance: scale ``w`` of the first round's teacher; its student has it built in.
      path: path; default the student's network's.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, teacher (which follows
      the student at the end of each round).
    """
    if not steps or any(a != 2 * b for a, b in zip(steps, steps[1:], strict=False)):
        raise ValueError(
            f"steps must halve from round to round, for example (8, 4, 2, 1), got "
            f"{steps}"
        )

    def rounds(count: int, scale: float) -> tuple[Phase, ...]:
        def halve(ctx: Context) -> Array:
            way = path_of(ctx, path)
            times = jnp.asarray(grid(2 * count, way), jnp.float32)
            index = 2 * ctx.integers("index", count)
            t, m, s = times[index], times[index + 1], times[index + 2]
            x_t = way.noise(ctx.data["x0"], ctx.normal("eps"), t)
            f = ctx.nets.student.flow_map(ctx.cond, path=way, two_time=False)
            field = ctx.nets.teacher.guided(ctx.data, scale, kind=f.kind, path=way)
            jump = AffineFlowMap(lambda x, t, s: field(x, t), way, f.kind)
            c = losses.semigroup(f, jump, x_t, t, m, s)
            if truncated:
                gains = decompose(way, f.kind, jnp.ones_like(t), jnp.zeros_like(t), t)
                c = transforms.scale(c, jnp.maximum(*(gain**2 for gain in gains)))
            return losses.regress(c)

        return (Phase("student", ("student",), (Term("halve", halve),)),)

    last = (len(steps) - 1) * round_cycles
    parts = [rounds(n, guidance if i == 0 else 1.0) for i, n in enumerate(steps)]
    follow = Follow("student", Switch(last, 0.0, 1.0), every=round_cycles)
    needs = guidance_needs(guidance)
    return check(
        Method(
            name="progressive",
            roles={
                "student": Role(),
                "teacher": TEACHER._replace(
                    needs=needs, follow=follow if len(steps) > 1 else None
                ),
            },
            phases=parts[-1],
            sampling=Sampling(grid, Deterministic(), path, two_time=False),
            stages=tuple(
                Stage((i + 1) * round_cycles, part) for i, part in enumerate(parts[:-1])
            ),
            cite=(PROGRESSIVE,),
        )
    )


def reflow(
    *,
    law: Law = Uniform(),
    substeps: int = 16,
    solver: Solver = Heun(),
    guidance: float = 1.0,
    online: bool = True,
    endpoint: bool = False,
    metric: Metric = half_mse,
    path: Path | None = None,
) -> Method:
    """Rectified flow on the teacher's pairs: flow matching of noise and its image.

    With ``z`` noise and ``x = ODE_teacher(z)``, ``|v(x_t, t) - (alpha' x + sigma'
    z)|^2 / 2`` on the path between the two (eq. 1); ``z - x`` on the linear path. The
    paths of the student cross less, so that one step goes further. Further rounds run
    the method again with the student for the teacher.

    Args:
      law: times; uniform in the paper. ``Point(1.0)`` is the distillation to one step
        that follows the rounds (its squared error is then the endpoint's).
      substeps: solver steps of the teacher from noise to data.
      solver: solver of the teacher.
      guidance: scale ``w`` of the teacher; InstaFlow takes a small one, 1.5.
      online: True draws the pairs as it trains; False takes them from the batch, noise
        ``eps`` and image ``x0``.
      endpoint: compares ``f(x_t, t, 0)`` with the image in ``metric`` in place of the
        velocities (InstaFlow's last stage, with LPIPS and ``law=Point(1.0)``).
      metric: distance of the endpoints or velocities.
      path: path; default the student's network's. The image is the teacher's on any.

    Returns:
      The method. Batch: ``cond``, and ``x0`` and ``eps`` of a pair if not ``online``.
      Roles: student, and online the teacher.
    """
    draw = TeacherTrajectory(1, substeps, solver=solver, guidance=guidance, path=path)

    def straighten(ctx: Context) -> Array:
        way = path_of(ctx, path)
        if online:
            pair = ctx.data["pair"]
            x = pair["end"]
            z = pair["states"][0] / way.sigma(jnp.asarray(pair["times"][0]))
        else:
            x, z = ctx.data["x0"], ctx.data["eps"]
        t = ctx.times("t", law, way)
        x_t = way.noise(x, z, t)
        if endpoint:
            f = ctx.nets.student.flow_map(ctx.cond, path=way, two_time=False)
            return losses.regress(losses.toward(f(x_t, t, 0.0), x), metric)
        v = ctx.nets.student.velocity(ctx.cond, path=way)(x_t, t)
        return losses.regress(losses.toward(v, way.velocity(x, z, t)), metric)

    roles = {"student": Role()}
    if online:
        roles["teacher"] = TEACHER._replace(needs=guidance_needs(guidance))
    phase = Phase(
        "student",
        ("student",),
        (Term("straighten", straighten),),
        {"pair": draw} if online else {},
    )
    return check(
        Method(
            name="reflow",
            roles=roles,
            phases=(phase,),
            batch=frozenset() if online else frozenset({"x0", "eps"}),
            sampling=Sampling(renoise=Deterministic(), path=path, two_time=False),
            cite=(REFLOW,),
        )
    )
