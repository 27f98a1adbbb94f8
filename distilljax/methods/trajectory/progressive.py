"""Progressive distillation: one step of the student for two of the teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
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
from distilljax.diffusion.times import Cycles, Grid, PathGrid, Switch
from distilljax.losses import transforms
from distilljax.methods.parts import TEACHER, guidance_needs, path_of
from distilljax.methods.registry import register
from distilljax.methods.weights import LevelWeight, noise_ratio
from distilljax.runtime.axes import looked_up

Array = jax.Array

PROGRESSIVE = Citation(
    "progressive",
    "Progressive Distillation for Fast Sampling of Diffusion Models",
    "Salimans, Ho",
    2022,
    "arXiv:2202.00512",
    "Algorithm 2",
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
    2):

        max(alpha_t^2 / sigma_t^2, 1) |D(x_t, t) - x~|^2 / 2,
        x~ = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t),

    ``x_s`` the teacher's end and ``D`` the student's ``x0``. After ``round_cycles`` the
    student is the teacher of the next round, with the next entry of ``steps``; the last
    round lasts to the end. On the linear path the target is the mean of the two
    velocities: `shortcut` without a step size.

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
