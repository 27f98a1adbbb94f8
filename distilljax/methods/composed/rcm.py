"""rCM: continuous-time consistency regularised by distribution matching."""

from __future__ import annotations

import math
from typing import Any

from distilljax.core.composition import compose
from distilljax.core.method import Citation, Method, Stage
from distilljax.diffusion.paths import Path, trigflow
from distilljax.diffusion.times import (
    Cycles,
    Grid,
    InClock,
    Law,
    LogNormal,
    Ramp,
    Schedule,
    Shifted,
    TableGrid,
    Uniform,
)
from distilljax.methods.consistency.scm import scm
from distilljax.methods.matching.dmd2 import dmd2
from distilljax.methods.registry import register

RCM = Citation(
    "rcm",
    "Large Scale Diffusion Distillation via Score-Regularized Continuous-Time "
    "Consistency",
    "Zheng, Wang, Ma, Chen, Zhang, Balaji, Chen, Liu, Zhu, Zhang",
    2025,
    "arXiv:2510.08431",
    "eq. 8 to 10",
)

_ARCTAN_80 = math.atan(80.0)

# Noise angles at which the released sampler of rCM starts its steps.
RCM_GRID = TableGrid(
    (
        (_ARCTAN_80,),
        (_ARCTAN_80, 1.5),
        (_ARCTAN_80, 1.5, 1.4),
        (_ARCTAN_80, 1.5, 1.4, 1.0),
    ),
    angles=True,
)


@register(
    family="composed",
    cite=RCM,
    summary="scm and dmd2 at once: consistency regularised by distribution matching",
)
def rcm(
    *,
    scm_weight: Schedule = 100.0,
    dmd_weight: Schedule = 1.0,
    warmup: Cycles = 1000,
    law: Law = LogNormal(0.7, 1.6),
    dmd_law: Law = InClock(Shifted(Uniform(), 5.0)),
    guidance: float = 1.0,
    steps: tuple[int, ...] = (1, 2, 3, 4),
    grid: Grid | None = None,
    sampling_grid: Grid | None = None,
    critic_steps: int = 4,
    path: Path = trigflow(),
    scm_options: dict[str, Any] | None = None,
    dmd_options: dict[str, Any] | None = None,
) -> Method:
    """rCM: continuous-time consistency with a score-matching regulariser, no GAN.

    ``compose(scm(learned_weight=False), dmd2(gan_weight=0))``: the forward divergence
    covers the modes, the reverse one sharpens them. While the tangent warms up only
    scm's student phase runs (a stage); afterwards a cycle is ``critic_steps`` updates
    of the fake score and one of the student.

    Defaults are those of the released Wan 1.3B recipe (NVlabs/rcm), but for its
    guidance of 5, which wants a null condition. Its backward simulation draws its times
    at random: it starts at ``t_max``, every later time of a sample is the smaller of
    its predecessor and a draw of ``dmd_law``, and the number of steps is uniform. Its
    warm-up scales the ``x_t`` part of the tangent alone (``state_only`` of `scm`); with
    ``scm_options={"state_only": False}`` it scales the jvp too, as the paper's sCM. Its
    losses are sums over the elements without 1/2, ``2 D`` times these means, which
    matters to clipping alone. Its discrete-time variant has no part here.

    Args:
      scm_weight: weight of scm's student term; 100 : 1 in the released code, whose
        losses are sums, the ratio is the same for means.
      dmd_weight: weight of the distribution-matching term.
      warmup: cycles of tangent warm-up.
      law: times of scm, ``log tan t ~ N(0.7, 1.6^2)``.
      dmd_law: times of the gap, of the critic and of the backward simulation; by
        default ``tan t = 5 u / (1 - u)``, shift 5 of rectified flow's time.
      guidance: scale ``w`` of the teacher, in both; 5 in the release.
      steps: numbers of steps of the backward simulation. At drawn times only the
        largest matters.
      grid: None draws the times of the backward simulation. A grid fixes them, for
        every number of ``steps`` (the release's ``dmd_fix_timesteps``).
      sampling_grid: times of the sampler; default ``grid``, and without one the
        release's ``arctan(80), 1.5, 1.4, 1.0``, of which a sampler of fewer steps takes
        the first.
      critic_steps: critic updates per student update; 4 of every 5 in the release.
      path: TrigFlow; ``dmd_options`` may give the matching part its own path, whose
        grid the sampler then uses.
      scm_options: further arguments of `scm`.
      dmd_options: further arguments of `dmd2`.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, teacher, fake_score.
    """
    consistency = scm(
        **{
            "law": law,
            "guidance": guidance,
            "warmup": Ramp(warmup),
            "state_only": True,
            "learned_weight": False,
            "path": path,
            **(scm_options or {}),
        }
    )
    matching = dmd2(
        **{
            "steps": steps,
            "grid": RCM_GRID if grid is None else grid,
            "sampling_grid": sampling_grid,
            "rollout_law": dmd_law if grid is None else None,
            "law": dmd_law,
            "critic_law": dmd_law,
            "guidance": guidance,
            "critic_steps": critic_steps,
            "gan_weight": 0,
            "path": path,
            **(dmd_options or {}),
        }
    )
    weights = {"scm": scm_weight, "dmd2": dmd_weight}
    out = compose(
        consistency,
        matching,
        weights=weights,
        sampling=matching.sampling,
        name="rcm",
        cite=(RCM,),
    )
    if not warmup:
        return out
    alone = compose(consistency, weights={"scm": scm_weight})
    return out._replace(stages=(Stage(warmup, alone.phases),))
