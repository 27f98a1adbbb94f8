"""The catalogue: every registered method, its source and what it needs.

A method enters with one factory in a family's file and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from distilljax.errors import unknown
from distilljax.method import Citation, Method
from distilljax.methods.anchored import DE_CM, FACM, de_cm, facm
from distilljax.methods.composed import RCM, SANA_SPRINT, rcm, sana_sprint
from distilljax.methods.consistency import CM_CD, SCM, cm_cd, scm
from distilljax.methods.consistency_training import (
    CM_CT,
    ECT,
    ICT,
    LCM,
    cm_ct,
    ect,
    ict,
    lcm,
)
from distilljax.methods.distribution import DMD2, GDMD, SID, dmd2, gdmd, sid
from distilljax.methods.flow_maps import MEAN_FLOW, mean_flow
from distilljax.methods.regression import (
    DENOISING,
    FLOW_MATCHING,
    denoising,
    flow_matching,
)

__all__ = [
    "CATALOGUE",
    "Entry",
    "build",
    "cm_cd",
    "cm_ct",
    "de_cm",
    "denoising",
    "dmd2",
    "ect",
    "facm",
    "flow_matching",
    "gdmd",
    "ict",
    "lcm",
    "mean_flow",
    "rcm",
    "sana_sprint",
    "scm",
    "sid",
]


class Entry(NamedTuple):
    """A row of the catalogue.

    Attributes:
      factory: keyword arguments -> `Method`.
      cite: the paper.
      family: as the README groups them.
      line: what it does, in one line.
      teacher: whether it distils a teacher.
    """

    factory: Callable[..., Method]
    cite: Citation
    family: str
    line: str
    teacher: bool = True


CATALOGUE = {
    "flow_matching": Entry(
        flow_matching,
        FLOW_MATCHING,
        "regression",
        "velocity regressed on data and noise; makes teachers",
        teacher=False,
    ),
    "denoising": Entry(
        denoising,
        DENOISING,
        "regression",
        "any kind of prediction regressed on data and noise; makes teachers",
        teacher=False,
    ),
    "cm_cd": Entry(
        cm_cd,
        CM_CD,
        "consistency",
        "neighbouring points of one teacher trajectory map to one x0",
    ),
    "scm": Entry(
        scm,
        SCM,
        "consistency",
        "continuous-time consistency on TrigFlow through one jvp",
    ),
    "cm_ct": Entry(
        cm_ct,
        CM_CT,
        "consistency",
        "neighbouring noise levels of one data point map to one x0",
        teacher=False,
    ),
    "ict": Entry(
        ict,
        ICT,
        "consistency",
        "consistency training on itself, pseudo-Huber, doubling segments",
        teacher=False,
    ),
    "ect": Entry(
        ect,
        ECT,
        "consistency",
        "a diffusion model tuned into a consistency model by shrinking gaps",
        teacher=False,
    ),
    "lcm": Entry(
        lcm,
        LCM,
        "consistency",
        "long steps of the guided teacher, the scale drawn from a range",
    ),
    "facm": Entry(
        facm,
        FACM,
        "consistency",
        "continuous-time consistency anchored by flow matching in one network",
    ),
    "de_cm": Entry(
        de_cm,
        DE_CM,
        "consistency",
        "to the data, along the flow, and from noise to every level",
    ),
    "mean_flow": Entry(
        mean_flow,
        MEAN_FLOW,
        "flow map",
        "average velocity between any two times through one jvp",
    ),
    "dmd2": Entry(
        dmd2,
        DMD2,
        "distribution matching",
        "score gap of teacher and fake score, GAN, backward simulation",
    ),
    "sid": Entry(
        sid,
        SID,
        "distribution matching",
        "Fisher divergence by score identities, data-free",
    ),
    "rcm": Entry(
        rcm,
        RCM,
        "composed",
        "continuous-time consistency regularised by distribution matching",
    ),
    "sana_sprint": Entry(
        sana_sprint,
        SANA_SPRINT,
        "composed",
        "continuous-time consistency with a GAN on the teacher's features",
    ),
    "gdmd": Entry(
        gdmd,
        GDMD,
        "reward",
        "a reward scores the target of each score-gap update",
    ),
}


def build(name: str, **options: Any) -> Method:
    """Builds a registered method.

    Args:
      name: registry id.
      **options: arguments of its factory.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown name or option, with the near matches.
    """
    import inspect

    if name not in CATALOGUE:
        raise ValueError(unknown("method", name, CATALOGUE))
    factory = CATALOGUE[name].factory
    known = inspect.signature(factory).parameters
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of method {name!r}", option, known))
    return factory(**options)
