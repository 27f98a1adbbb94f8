"""The score gap of distribution matching, and its times."""

from __future__ import annotations

import jax

from distilljax import losses
from distilljax.core.context import Context
from distilljax.diffusion.clocks import ByPath, KarrasUniform, Timesteps
from distilljax.diffusion.paths import Path
from distilljax.diffusion.times import Law, Uniform, central
from distilljax.losses import transforms
from distilljax.losses.corrections import Correction
from distilljax.methods.parts import noised, path_of, twin_predictions

sg = jax.lax.stop_gradient

# DMD2's times: of 1000 levels or timesteps the indices 20 to 980 for the gap, all for
# fake score and GAN; elsewhere uniform in the clock.
GAP_TIMES = ByPath(
    central(0.02), edm=KarrasUniform(0.02, 0.98), vp=Timesteps(0.02, 0.98)
)

ALL_TIMES = ByPath(Uniform(), edm=KarrasUniform(), vp=Timesteps())


def match_scores(
    ctx: Context,
    law: Law,
    path: Path | None,
    guidance: float,
    floor: float | None = None,
    suffix: str = "",
) -> Correction:
    """Normalised DMD correction of ``ctx.data["x"]`` at one re-noised point."""
    p = path_of(ctx, path)
    x = ctx.data["x"]
    x_t, t, _ = noised(ctx, sg(x), law, p, suffix)
    real, fake = twin_predictions(ctx, x_t, t, p, guidance)
    gap = losses.score_gap(x, real, fake)
    return transforms.normalize_by_error(gap, reference=real, floor=floor)
