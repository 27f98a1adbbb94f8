"""What both forms of Align Your Flow share."""

from __future__ import annotations

from distilljax.core.context import Context
from distilljax.core.draws import Guidance
from distilljax.core.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.diffusion import fields
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Deterministic
from distilljax.losses.trajectory import Derivative, exact
from distilljax.methods.parts import TEACHER, guidance_needs, scale_of, telling


def _ayf(
    cite: Citation,
    term: Term,
    guidance: Guidance,
    embed: bool,
    autoguidance: bool,
    path: Path | None,
    derivative: Derivative = exact,
) -> Method:
    tell = telling(guidance if embed else None)
    needs = tell.needs | {"second_time"} | ({"jvp"} if derivative is exact else set())
    roles = {"student": Role(needs=needs), "teacher": TEACHER}
    if autoguidance:
        roles["weak_teacher"] = TEACHER
    else:
        roles["teacher"] = TEACHER._replace(needs=guidance_needs(guidance))
    return check(
        Method(
            name=cite.id,
            roles=roles,
            phases=(Phase("student", ("student",), (term,), tell.draws),),
            sampling=Sampling(
                renoise=Deterministic(),
                path=path,
                two_time=True,
                guidance=tell.default,
            ),
            cite=(cite,),
        )
    )


def _ayf_field(
    ctx: Context,
    way: Path,
    guidance: Guidance,
    interval: tuple[float, float] | None,
    autoguidance: bool,
) -> fields.Field:
    """Velocity of the teacher, guided by the null condition or by a weaker model."""
    return ctx.nets.teacher.guided(
        ctx.data,
        scale_of(ctx, guidance),
        kind="velocity",
        path=way,
        interval=interval,
        weak=ctx.nets.weak_teacher if autoguidance else None,
    )
