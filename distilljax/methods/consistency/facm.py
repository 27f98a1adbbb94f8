"""Flow-anchored consistency (FACM)."""

from __future__ import annotations

from distilljax.core.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.diffusion.paths import Path, linear
from distilljax.diffusion.sampler import Consistency
from distilljax.diffusion.times import ArctanNormal, Grid, Law, PathGrid, Schedule
from distilljax.losses.trajectory import Derivative, exact
from distilljax.methods.consistency._anchored import OnFlow, anchor, shortcut
from distilljax.methods.parts import TEACHER, guidance_needs
from distilljax.methods.registry import register

FACM = Citation(
    "facm",
    "Flow-Anchored Consistency Models",
    "Peng, Zhu, Liu, Wu, Li, Sun, Wu",
    2025,
    "arXiv:2507.03738",
)


@register(
    family="consistency",
    cite=FACM,
    summary="continuous-time consistency anchored by flow matching in one network",
)
def facm(
    *,
    law: Law = ArctanNormal(-0.8, 1.6),
    teacher: bool = True,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = (0.0, 0.875),
    outside: bool = True,
    mirrored_null: bool = False,
    anchor_weight: Schedule = 1.0,
    relaxation: float | None = 0.5,
    limit: float = 1.0,
    p: float = 0.5,
    eps: float = 1e-3,
    warmup: Schedule = 1.0,
    mirrored: bool = False,
    derivative: Derivative = exact,
    path: Path = linear(),
    sampling_grid: Grid = PathGrid(),
) -> Method:
    """FACM: the shortcut to the data, anchored by flow matching in the same network.

    Anchor: ``mean |u(x_t, t, t) - v|^2 + 1 - cos``. Shortcut: with ``u* = v - t du/dt``
    and ``g = clip(u* - u, -1, 1)`` the target is ``u + a g``, ``a = 1 - (1 - t)^0.5``;
    with ``e = mean |a g|^2`` the loss is ``sin(pi t / 2) e / sg (e + 0.001)^0.5``. The
    two tasks are told apart by the time: an end time 0 or ``t``, or one time ``t`` or
    ``-t``.

    Args:
      law: times, of both terms, which share their points.
      teacher: False takes the velocity of the data.
      guidance: scale ``w``; without a teacher the null velocity is the student's own,
        which label dropout must have taught it before.
      guidance_interval: times of ``path`` at which guidance is on.
      outside: whether, without a teacher, the velocity of the data is still moved away
        from the student's own at the other times, from the conditional one instead of
        the null one: the release swaps the labels there. False takes the velocity of
        the data. A teacher's is its conditional one either way.
      mirrored_null: whether, without a teacher, a ``mirrored`` network is asked for the
        null velocity at ``-t``, where it keeps it. The release asks at ``t``, where the
        network holds the mean velocity to the data.
      anchor_weight: weight of the anchor; the number 0 leaves it out.
      relaxation: power in ``a``; None for ``a = 1``.
      limit: largest element of the gap ``u* - u``.
      p: power of the adaptive weight.
      eps: constant of the adaptive weight.
      warmup: ratio that scales ``t du/dt``; the paper has none.
      mirrored: asks a one-time network at ``-t`` for the anchor (the paper's expanded
        time interval) in place of an end time.
      derivative: `losses.exact` or `losses.finite_difference(step)`.
      path: the linear path; others work likewise.
      sampling_grid: times of the sampler.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, with a second time
      unless ``mirrored``; teacher.
    """
    point = OnFlow(
        law,
        path,
        teacher,
        guidance,
        guidance_interval,
        mirrored=(True if mirrored_null else None) if mirrored else False,
        outside=outside,
    )
    short = shortcut(
        path,
        two_time=not mirrored,
        relaxation=relaxation,
        limit=limit,
        p=p,
        eps=eps,
        warmup=warmup,
        derivative=derivative,
    )
    terms = (Term("shortcut", short),)
    if not (isinstance(anchor_weight, (int, float)) and anchor_weight == 0):
        terms += (Term("anchor", anchor(path, mirrored), anchor_weight),)
    needs = ({"jvp"} if derivative is exact else set()) | (
        set() if mirrored else {"second_time"}
    )
    if not teacher:
        needs |= guidance_needs(guidance)
    roles = {"student": Role(needs=frozenset(needs))}
    if teacher:
        roles["teacher"] = TEACHER._replace(needs=guidance_needs(guidance))
    return check(
        Method(
            name="facm",
            roles=roles,
            phases=(Phase("student", ("student",), terms, {"point": point}),),
            sampling=Sampling(
                sampling_grid, Consistency(), path, two_time=not mirrored
            ),
            cite=(FACM,),
        )
    )
