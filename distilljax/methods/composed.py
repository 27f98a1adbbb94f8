"""Methods that are compositions of others."""

from __future__ import annotations

from typing import Any

from distilljax.composition import compose
from distilljax.method import Citation, Method, Stage
from distilljax.methods.consistency import scm
from distilljax.methods.distribution import dmd2
from distilljax.paths import Path, trigflow
from distilljax.times import EvenGrid, Grid, Law, LogNormal, Ramp, Shifted, Uniform

RCM = Citation(
    "rcm",
    "Large Scale Diffusion Distillation via Score-Regularized Continuous-Time "
    "Consistency",
    "Zheng, Wang, Ma, Chen, Zhang, Balaji, Chen, Liu, Zhu, Zhang",
    2025,
    "arXiv:2510.08431",
    "eq. 8 to 10",
)


def rcm(
    *,
    scm_weight: float = 100.0,
    dmd_weight: float = 1.0,
    warmup: int = 1000,
    law: Law = LogNormal(0.7, 1.6),
    dmd_law: Law = Shifted(Uniform(), 5.0),
    guidance: float = 1.0,
    steps: tuple[int, ...] = (1, 2, 3, 4),
    grid: Grid = EvenGrid(),
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

    The released code scales only the ``x_t`` part of the tangent in the warm-up and not
    the jvp; this warm-up is sCM's, which scales both. They agree once it is over.

    Args:
      scm_weight: weight of scm's student term; 100 : 1 in the released code, whose
        losses are sums, the ratio is the same for means.
      dmd_weight: weight of the distribution-matching term.
      warmup: cycles of tangent warm-up.
      law: times of scm; the released Wan 1.3B recipe by default.
      dmd_law: times of the gap and of the critic, in the clock of ``path``.
      guidance: scale ``w`` of the teacher, in both.
      steps: numbers of steps of the backward simulation.
      grid: their time grids, also the sampler's.
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
            "learned_weight": False,
            "path": path,
            **(scm_options or {}),
        }
    )
    matching = dmd2(
        **{
            "steps": steps,
            "grid": grid,
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
