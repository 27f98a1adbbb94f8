"""SANA-Sprint: continuous-time consistency with a GAN."""

from __future__ import annotations

import math
from typing import Any

from distilljax.core.composition import compose
from distilljax.core.draws import Guidance, Jump
from distilljax.core.method import Citation, Method
from distilljax.diffusion.paths import Path, trigflow
from distilljax.diffusion.times import (
    ArctanNormal,
    Cycles,
    Grid,
    Law,
    Mixture,
    Point,
    Ramp,
    Schedule,
    TableGrid,
)
from distilljax.methods.adversarial.ladd import ladd
from distilljax.methods.consistency.scm import scm
from distilljax.methods.registry import register

SANA_SPRINT = Citation(
    "sana_sprint",
    "SANA-Sprint: One-Step Diffusion with Continuous-Time Consistency Distillation",
    "Chen, Xue, Zhao, Yu, Paul, Chen, Cai, Han, Xie",
    2025,
    "arXiv:2503.09641",
)


@register(
    family="composed",
    cite=SANA_SPRINT,
    summary="continuous-time consistency with a GAN on the teacher's features",
)
def sana_sprint(
    *,
    adversarial_weight: Schedule = 0.5,
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
