"""Students of the teacher's trajectories: progressive distillation and reflow."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import TeacherTrajectory
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
from distilljax.diffusion.flow_maps import AffineFlowMap
from distilljax.diffusion.paths import Path
from distilljax.diffusion.predictions import decompose
from distilljax.diffusion.sampler import Deterministic
from distilljax.diffusion.solvers import Heun, Solver
from distilljax.diffusion.times import (
    Cycles,
    Grid,
    Law,
    PathGrid,
    Switch,
    Uniform,
)
from distilljax.losses import transforms
from distilljax.losses.metrics import Metric, half_mse
from distilljax.methods.parts import TEACHER, guidance_needs, path_of
from distilljax.methods.registry import register
from distilljax.methods.weights import LevelWeight, noise_ratio
from distilljax.runtime.axes import looked_up

Array = jax.Array
sg = jax.lax.stop_gradient

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


@register(
    family="trajectory",
    cite=PROGRESSIVE,
    summary="one student step equals two of its teacher, halved round by round",
)
def progressive(
    *,
    steps: tuple[int, ...] = (8, 4, 2, 1),
    round_cycles: Cycles = 1000,
    grid: Grid = PathGrid(floor=True),
    truncated: bool = True,
    weight: LevelWeight | None = None,
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
      grid: time grid of ``N`` steps; that of ``2 N`` must hold its times, as even steps
        and Karras points do. The paper's cosine schedule from log-SNR 20 to -20 is
        `paths.trigflow` with even steps, but for 1e-5 at both ends.
      truncated: weight ``max(SNR, 1)`` on ``x0``, the larger of the errors of ``x0``
        and ``eps``; False weighs the network's output plainly, which on VP with v is
        ``SNR + 1``.
      weight: another weight of the squared error of ``x0``, in place of these two; the
        release's are `weights.constant`, `weights.snr`, `weights.truncated_snr` and,
        for v, `weights.snr_plus_one`.
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
            times = jnp.asarray(grid(2 * count, way))
            index = 2 * ctx.integers("index", count)
            t, m, s = (looked_up(times, index + i) for i in range(3))
            x_t = way.noise(ctx.data["x0"], ctx.normal("eps"), t)
            f = ctx.nets.student.flow_map(ctx.cond, path=way, two_time=False)
            field = ctx.nets.teacher.guided(ctx.data, scale, kind=f.kind, path=way)
            jump = AffineFlowMap(lambda x, t, s: field(x, t), way, f.kind)
            c = losses.semigroup(f, jump, x_t, t, m, s)
            gains = decompose(way, f.kind, jnp.ones_like(t), jnp.zeros_like(t), t)
            if weight is not None:
                levels = noise_ratio(way, t), noise_ratio(way, s)
                w = weight(*levels, way.sigma_d) * gains[0] ** 2
                c = transforms.scale(c, w)
            elif truncated:
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
            sampling=Sampling(
                grid, Deterministic(), path, two_time=False, steps=steps[-1]
            ),
            stages=tuple(
                Stage((i + 1) * round_cycles, part) for i, part in enumerate(parts[:-1])
            ),
            cite=(PROGRESSIVE,),
        )
    )


@register(
    family="trajectory",
    cite=REFLOW,
    summary="flow matching on the teacher's pairs of noise and image",
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
      law: times; uniform in the paper, up to 0.999 in its code. ``Point(1.0)`` is the
        distillation to one step that follows the rounds (its squared error is then the
        endpoint's), `times.Choice` that to several.
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
            sampling=Sampling(
                renoise=Deterministic(), path=path, two_time=False, steps=4
            ),
            cite=(REFLOW,),
        )
    )
