"""Rectified flow: straight lines between the ends of the teacher's trajectories."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.draws import TeacherTrajectory
from distilljax.core.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Deterministic
from distilljax.diffusion.solvers import Heun, Solver
from distilljax.diffusion.times import Law, Uniform
from distilljax.losses.metrics import Metric, half_mse
from distilljax.methods.parts import TEACHER, guidance_needs, path_of
from distilljax.methods.registry import register

Array = jax.Array

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
