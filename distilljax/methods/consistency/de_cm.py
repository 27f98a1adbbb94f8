"""Dual-End Consistency: the map to the data, along the flow, and from the noise."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.diffusion.fields import Field
from distilljax.diffusion.paths import Path, linear
from distilljax.diffusion.sampler import HopFirst
from distilljax.diffusion.times import (
    Grid,
    Law,
    PathGrid,
    Ramp,
    Schedule,
    Uniform,
    value_at,
)
from distilljax.losses import transforms
from distilljax.losses.corrections import Correction
from distilljax.methods.consistency._anchored import OnFlow, anchor, shortcut
from distilljax.methods.parts import TEACHER, guidance_needs
from distilljax.methods.registry import register

Array = jax.Array

DE_CM = Citation(
    "de_cm",
    "Dual-End Consistency Model",
    "Dong, Guo, Bai, Yuan, Luo, Zou",
    2026,
    "arXiv:2602.10764",
    "eq. 8, 13 to 18",
)


def hop(
    velocity: Callable[[Context], Field],
    path: Path,
    law: Law,
    start: Schedule,
    every: int,
    start_weight: float,
    end_weight: float,
    tangent: Callable[[Correction], Correction] | None,
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
            c = transforms.drop_nonfinite(c)
            return 2.0 * losses.regress(c if tangent is None else tangent(c))

        if every == 1:
            return values()
        return jax.lax.cond(ctx.step % every == 0, values, lambda: jnp.zeros_like(end))

    return loss


@register(
    family="consistency",
    cite=DE_CM,
    summary="to the data, along the flow, and from noise to every level",
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
    tangent: Callable[[Correction], Correction] | None = transforms.normalize_tangent,
    relaxation: float | None = 0.5,
    limit: float = 1.0,
    p: float = 0.5,
    eps: float = 1e-3,
    warmup: Schedule = 1.0,
    path: Path = linear(),
    sampling_grid: Grid = PathGrid(),
) -> Method:
    """Dual-End Consistency: three clusters of pairs in place of all ``(t, s)``.

    ``L_cm + L_fm + L_n2n``: to the data; ``s = t``, see `anchor`; and from noise to
    every level, see `losses.dual_end`, every third cycle.

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

    ``L_n2n`` has one start at a time, and once ``start`` rests, no other level holds
    the network's derivative in the start: one equation for two unknowns, the map and
    that derivative. On the bench's 2-D mixture two steps, whose first is a hop, end at
    6.0 times the floor (11.7 without ``tangent``), and with ``start_weight=0,
    end_weight=1``, the derivative in the end alone, at 2.9; one step at 2.5 and 2.9.
    The default is the paper's.

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
      tangent: transform of ``L_n2n``'s correction, of which the paper says nothing. The
        teacher is asked at the student's own end, and off the data its velocity grows
        like ``1/s``: as it is (None) the correction of few samples drowns the others.
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

    ends = hop(velocity, path, law, start, every, start_weight, end_weight, tangent)
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
