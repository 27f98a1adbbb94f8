"""Methods that are compositions of others."""

from __future__ import annotations

import math
from typing import Any

from distilljax.core.composition import compose
from distilljax.core.draws import Guidance, Jump
from distilljax.core.method import Citation, Method, Stage
from distilljax.diffusion.paths import Path, trigflow
from distilljax.diffusion.times import (
    ArctanNormal,
    Cycles,
    Grid,
    InClock,
    Law,
    LogNormal,
    Mixture,
    Point,
    Ramp,
    Schedule,
    Shifted,
    TableGrid,
    Uniform,
)
from distilljax.methods.adversarial import ladd
from distilljax.methods.consistency import scm
from distilljax.methods.distribution import dmd2
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


SANA_SPRINT = Citation(
    "sana_sprint",
    "SANA-Sprint: One-Step Diffusion with Continuous-Time Consistency Distillation",
    "Chen, Xue, Zhao, Yu, Paul, Chen, Cai, Han, Xie",
    2025,
    "arXiv:2503.09641",
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
    scm_weight: float = 100.0,
    dmd_weight: float = 1.0,
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


@register(
    family="composed",
    cite=SANA_SPRINT,
    summary="continuous-time consistency with a GAN on the teacher's features",
)
def sana_sprint(
    *,
    adversarial_weight: float = 0.5,
    scm_weight: Schedule | None = None,
    law: Law = ArctanNormal(0.2 + math.log(2.0), 1.6),
    noise_law: Law = ArctanNormal(-0.6 + math.log(2.0), 1.0),
    full_noise: float = 0.5,
    misaligned: bool = True,
    guidance: Guidance = 1.0,
    embed: bool = False,
    warmup: Cycles = 4000,
    path: Path = trigflow(),
    sampling_grid: Grid = TableGrid(((1.5707963, 1.3),)),
    scm_options: dict[str, Any] | None = None,
) -> Method:
    """SANA-Sprint: continuous-time consistency with a GAN on the teacher's features.

    ``compose(scm(), ladd(), weights={"scm": 2 / sigma_d, "ladd": 0.5})``: ``-D(noised
    f(x_t', t'))`` under a hinge discriminator of heads on the frozen teacher, whose
    fakes are half the student's samples and half misaligned data, each under noise and
    times of its own. Half of the samples jump from pure noise, the others from scm's
    law of times. Discriminator and student alternate.

    Defaults are those of the released 1.6B recipe (NVlabs/Sana). Its consistency loss
    is ``mean (F - sg(F + g))^2 / (exp(logvar) sigma_d tan t) + logvar`` in units of the
    network: ``2 / sigma_d`` times the gradient of `scm`, whose square has a half and is
    in units of the data. ``scm_weight`` carries that factor, so that at equal
    ``logvar`` the two losses stand as in the release. The half stays in the learned
    weight too, which therefore settles higher by ``log 2``; ``scm_weight = 1 /
    sigma_d`` has the release's proportion at that optimum.

    A flow teacher is viewed on TrigFlow exactly, without the paper's conversion or its
    fine-tuning; the dense time embedding and QK-norm that make its jvp stable belong to
    the network.

    Args:
      adversarial_weight: weight of the GAN; the number 0 leaves `scm`.
      scm_weight: weight of the consistency term; default ``2 / path.sigma_d``.
      law: times of scm and of the jumps in TrigFlow's clock: the paper's ``t =
        arctan(exp(N(0.2, 1.6^2)) / 0.5)``, whatever ``sigma_d`` the path has.
      noise_law: times of the re-noising: ``arctan(exp(N(-0.6, 1)) / 0.5)``.
      full_noise: share of the jumps from pure noise.
      misaligned: whether data under a neighbour's condition counts as fake; it couples
        the samples of a batch, which forbids accumulation.
      guidance: scale ``w`` of the teacher, or several, see `scm`; the release's are
        ``Among((4.0, 4.5, 5.0))`` with ``embed``.
      embed: whether the student is told the scale (the paper's choice), see `lcm`.
      warmup: cycles of tangent warm-up.
      path: TrigFlow.
      sampling_grid: times of the sampler; the paper's second time is 1.3.
      scm_options: further arguments of `scm`.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, teacher, log_weight,
      discriminator.
    """
    consistency = scm(
        **{
            "law": law,
            "guidance": guidance,
            "embed": embed,
            "warmup": Ramp(warmup),
            "path": path,
            "sampling_grid": sampling_grid,
            **(scm_options or {}),
        }
    )
    parts = [consistency]
    if adversarial_weight:
        times = Mixture(((full_noise, Point(1.0)), (1.0 - full_noise, law)))
        parts.append(
            ladd(
                draw=Jump(times, path=path),
                law=noise_law,
                misaligned=misaligned,
                scales=guidance if embed else None,
                critic_weight=0.5,
                path=path,
            )
        )
    weights = {"scm": 2.0 / path.sigma_d if scm_weight is None else scm_weight}
    if adversarial_weight:
        weights["ladd"] = adversarial_weight
    return compose(*parts, weights=weights, name="sana_sprint", cite=(SANA_SPRINT,))
