"""The catalogue: every registered method, its source and what it needs.

A method enters with one factory in a family's file and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from distilljax.core.method import Citation, Method
from distilljax.methods.adversarial import LADD, ladd
from distilljax.methods.anchored import FACM, facm
from distilljax.methods.composed import RCM, SANA_SPRINT, rcm, sana_sprint
from distilljax.methods.consistency import CM_CD, LCM, SCM, cm_cd, lcm, scm
from distilljax.methods.consistency_training import (
    CM_CT,
    ECT,
    ICT,
    cm_ct,
    ect,
    ict,
)
from distilljax.methods.distribution import DMD2, GDMD, SID, dmd2, gdmd, sid
from distilljax.methods.dual_end import DE_CM, de_cm
from distilljax.methods.flow_maps import MEAN_FLOW, mean_flow
from distilljax.methods.halving import SHORTCUT, shortcut
from distilljax.methods.policy import PI_FLOW, pi_flow
from distilljax.methods.regression import (
    DENOISING,
    FLOW_MATCHING,
    denoising,
    flow_matching,
)
from distilljax.methods.restoration import TSD_SR, tsd_sr
from distilljax.methods.score_matching import (
    DIFF_INSTRUCT,
    DMD,
    F_DISTILL,
    TDM,
    diff_instruct,
    dmd,
    f_distill,
    tdm,
)
from distilljax.methods.trajectories import (
    PROGRESSIVE,
    REFLOW,
    progressive,
    reflow,
)
from distilljax.methods.trajectory_consistency import CTM, ctm
from distilljax.methods.two_time import (
    AYF_EMD,
    AYF_LMD,
    ayf_emd,
    ayf_lmd,
)
from distilljax.runtime.errors import check_finite, unknown

__all__ = [
    "CATALOGUE",
    "Entry",
    "ayf_emd",
    "ayf_lmd",
    "build",
    "cm_cd",
    "cm_ct",
    "ctm",
    "de_cm",
    "denoising",
    "diff_instruct",
    "dmd",
    "dmd2",
    "ect",
    "f_distill",
    "facm",
    "flow_matching",
    "gdmd",
    "ict",
    "ladd",
    "lcm",
    "mean_flow",
    "pi_flow",
    "progressive",
    "rcm",
    "reflow",
    "sana_sprint",
    "scm",
    "shortcut",
    "sid",
    "tdm",
    "tsd_sr",
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
    "shortcut": Entry(
        shortcut,
        SHORTCUT,
        "flow map",
        "one jump equals two of half its length",
    ),
    "ayf_emd": Entry(
        ayf_emd,
        AYF_EMD,
        "flow map",
        "a jump's end does not depend on its start; normalised tangent, autoguidance",
    ),
    "ayf_lmd": Entry(
        ayf_lmd,
        AYF_LMD,
        "flow map",
        "a jump's end moves with the teacher's velocity at the student's own point",
    ),
    "ctm": Entry(
        ctm,
        CTM,
        "trajectory",
        "jumps between any times agree after the teacher has gone a part of the way",
    ),
    "progressive": Entry(
        progressive,
        PROGRESSIVE,
        "trajectory",
        "one student step equals two of its teacher, halved round by round",
    ),
    "reflow": Entry(
        reflow,
        REFLOW,
        "trajectory",
        "flow matching on the teacher's pairs of noise and image",
    ),
    "pi_flow": Entry(
        pi_flow,
        PI_FLOW,
        "trajectory",
        "one evaluation emits a policy whose path imitates the teacher",
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
    "diff_instruct": Entry(
        diff_instruct,
        DIFF_INSTRUCT,
        "distribution matching",
        "gradient of the integral KL divergence, data-free",
    ),
    "dmd": Entry(
        dmd,
        DMD,
        "distribution matching",
        "normalised score gap and regression to noise-image pairs",
    ),
    "f_distill": Entry(
        f_distill,
        F_DISTILL,
        "distribution matching",
        "score gap weighted for any f-divergence by a discriminator's density ratio",
    ),
    "tdm": Entry(
        tdm,
        TDM,
        "distribution matching",
        "score gap at every step of the student's deterministic trajectory, data-free",
    ),
    "ladd": Entry(
        ladd,
        LADD,
        "adversarial",
        "discriminator heads on the frozen teacher's features, no score gap",
    ),
    "rcm": Entry(
        rcm,
        RCM,
        "composed",
        "continuous-time consistency regularised by distribution matching",
    ),
    "tsd_sr": Entry(
        tsd_sr,
        TSD_SR,
        "restoration",
        "score gap and target score gap along a short trajectory, one step",
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
        "a reward sets the pace of score-gap updates, which rest at the teacher's law",
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
      ValueError: for an unknown name or option, with the near matches, or an option
        that is NaN or infinite.
    """
    import inspect

    if name not in CATALOGUE:
        raise ValueError(unknown("method", name, CATALOGUE))
    factory = CATALOGUE[name].factory
    known = inspect.signature(factory).parameters
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of method {name!r}", option, known))
        check_finite(f"option {option!r} of method {name!r}", options[option])
    try:
        return factory(**options)
    except TypeError as error:
        raise ValueError(
            f"options of method {name!r} do not fit ({error}): {options}"
        ) from error


# Floors that modules here may import.
IMPORTS = ("runtime", "diffusion", "losses", "core")
