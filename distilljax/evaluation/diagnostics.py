"""Signs that a distillation goes wrong, before its samples show it.

Pure functions of samples, networks and noise that the caller gives; call them every few
hundred cycles from `training.loop.Hooks.evaluate`. docs/evaluation.md says what to do
about each sign.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilljax.diffusion.fields import Field
from distilljax.diffusion.paths import Path, Time
from distilljax.evaluation.inputs import check_features
from distilljax.evaluation.statistics import (
    Moments,
    frechet_distance,
    mean_distance,
)

Array = jax.Array


class CriticLag(NamedTuple):
    """Mean errors of a denoiser on two sets, and what they say.

    Attributes:
      own: on samples that it was trained on.
      fresh: on samples of the present generator.
      ratio: ``fresh / own``; 1 for a critic that keeps up.
      error: standard error of the ratio, from pairs of equal noise and time.
    """

    own: float
    fresh: float
    ratio: float
    error: float


def denoising_error(
    denoiser: Field, x0: Array, eps: Array, t: Time, path: Path
) -> Array:
    """``mean |D(x_t, t) - x0|^2`` of every sample, ``x_t = path.noise(x0, eps, t)``.

    Args:
      denoiser: field that predicts the clean sample, with condition bound.
      x0: samples ``[B, ...]``.
      eps: noise of the same shape.
      t: scalar or ``[B]``, in the path's clock.
      path: the denoiser's.

    Returns:
      ``[B]``, means over the data axes.
    """
    error = denoiser(path.noise(x0, eps, t), t) - x0
    return jnp.mean(error**2, axis=tuple(range(1, x0.ndim)))


def critic_lag(
    denoiser: Field, own: Array, fresh: Array, eps: Array, t: Time, path: Path
) -> CriticLag:
    """Does a fake score fit the generator as it is, or as it was?

        E |D(x_t, t) - x|^2 over fresh samples / the same over its training samples

    with the same noise and times for both. The fake score of distribution matching must
    follow a generator that moves; where it lags, the score gap points away from a
    generator that is no more, and training oscillates.

    Args:
      denoiser: the fake score, predicting the clean sample.
      own: samples from its latest updates ``[B, ...]``.
      fresh: samples of the present generator ``[B, ...]``.
      eps: noise ``[B, ...]``.
      t: times ``[B]`` or a scalar; take those that the fake score is trained on.
      path: its path.

    Returns:
      Mean errors and their ratio. Near 1 is well, above 1.2 lags.

    Raises:
      ValueError: unequal shapes.
    """
    if own.shape != fresh.shape or own.shape != eps.shape:
        raise ValueError(
            f"own, fresh and eps must have one shape, got {own.shape}, {fresh.shape} "
            f"and {eps.shape}; take equally many samples of both."
        )
    errors = [
        np.asarray(denoising_error(denoiser, x, eps, t, path), np.float64)
        for x in (own, fresh)
    ]
    a, b = (float(e.mean()) for e in errors)
    spread = (errors[1] - b / a * errors[0]).std(ddof=1) if len(own) > 1 else np.nan
    return CriticLag(a, b, b / a, float(spread / np.sqrt(len(own)) / a))


class LatentDrift(NamedTuple):
    """How far the channels of samples have moved from the data's.

    Attributes:
      mean: root mean square over channels of ``(m - m_data) / s_data``.
      std: root mean square over channels of ``log(s / s_data)``.
      channel: the channel that is farthest off in either.
    """

    mean: float
    std: float
    channel: int


def latent_drift(samples: ArrayLike, data: ArrayLike) -> LatentDrift:
    """Means and standard deviations of latents by channel, against the data's.

    Decoders hide a drifting mean for long and then saturate.

    Args:
      samples: ``[N, ..., C]``.
      data: ``[M, ..., C]``, no channel constant.

    Returns:
      The drift; both numbers are 0 for equal channels. Above 0.1 is worth a look.

    Raises:
      ValueError: unequal numbers of channels, a constant channel, NaN.
    """
    shape = np.shape(samples), np.shape(data)
    if len(shape[0]) < 2 or len(shape[1]) < 2 or shape[0][-1] != shape[1][-1]:
        raise ValueError(
            "samples and data must be [N, ..., C] with equally many channels, got "
            f"shapes {shape[0]} and {shape[1]}."
        )
    x, y = (
        check_features(name, np.reshape(v, (-1, np.shape(v)[-1])))
        for name, v in (("samples", samples), ("data", data))
    )
    spread_x, spread_y = x.std(0), y.std(0)
    for name, spread in (("samples", spread_x), ("data", spread_y)):
        if not spread.all():
            raise ValueError(
                f"{name} must vary in every channel, channel {int(spread.argmin())} "
                "is constant; leave it out."
            )
    shift = np.abs(x.mean(0) - y.mean(0)) / spread_y
    scale = np.abs(np.log(spread_x / spread_y))
    return LatentDrift(
        float(np.sqrt((shift**2).mean())),
        float(np.sqrt((scale**2).mean())),
        int(np.maximum(shift, scale).argmax()),
    )


class Collapse(NamedTuple):
    """Diversity of samples relative to the data, and whether it is alarming."""

    diversity: float
    alarm: bool


def collapse(
    samples: ArrayLike, data: ArrayLike, *, threshold: float = 0.7
) -> Collapse:
    """Mean distance between two samples over that between two data.

    Give it samples and data of one class or prompt: a student that draws one image for
    each class has lost its diversity, and all classes together hide it.

    Args:
      samples: features ``[N, D]``, ``N >= 2``.
      data: features ``[M, D]``, ``M >= 2``.
      threshold: diversity below which to raise the alarm.

    Returns:
      Diversity, 1 for equal laws and 0 for one repeated sample, and the alarm.

    Raises:
      ValueError: wrong rank, fewer than two rows, NaN, or data that are all equal.
    """
    usual = mean_distance(data)
    if usual == 0:
        raise ValueError("data must hold two different rows, got equal ones.")
    found = mean_distance(samples) / usual
    return Collapse(found, found < threshold)


class TangentNorms(NamedTuple):
    """Percentiles of norms in bins of time.

    Attributes:
      edges: of the bins, ``[K + 1]``.
      counts: samples in each, ``[K]``.
      percentiles: ``[K, P]``; NaN in empty bins.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    percentiles: NDArray[np.float64]


def tangent_norms(
    direction: ArrayLike,
    t: ArrayLike,
    edges: Sequence[float],
    percentiles: Sequence[float] = (5, 50, 95, 99),
) -> TangentNorms:
    """Percentiles by time of the norms of corrections.

    Args:
      direction: ``Correction.direction`` ``[B, ...]``, before any normalisation.
      t: the corrections' times ``[B]``.
      edges: rising bin edges; the last bin includes its upper edge.
      percentiles: which, in [0, 100].

    Returns:
      The table. Norms that are not finite count as infinite, so that they show in the
      upper percentiles instead of vanishing.

    Raises:
      ValueError: shapes that do not fit, or edges that do not rise.
    """
    d, times = np.asarray(direction, np.float64), np.asarray(t, np.float64)
    bounds = np.asarray(edges, np.float64)
    if d.ndim < 1 or times.shape != d.shape[:1]:
        raise ValueError(
            f"direction [B, ...] and t [B] must fit, got {d.shape} and {times.shape}."
        )
    if len(bounds) < 2 or (np.diff(bounds) <= 0).any():
        raise ValueError(f"edges must rise, got {list(edges)}.")
    norms = np.linalg.norm(d.reshape(len(d), -1), axis=1)
    norms[~np.isfinite(norms)] = np.inf
    last = np.where(times == bounds[-1], len(bounds) - 2, -1)
    where = np.where(last >= 0, last, np.searchsorted(bounds, times, "right") - 1)
    table = np.full((len(bounds) - 1, len(percentiles)), np.nan)
    counts = np.zeros(len(bounds) - 1, np.int64)
    for k in range(len(bounds) - 1):
        inside = norms[where == k]
        counts[k] = len(inside)
        if len(inside):
            # The nearest one above: interpolation to infinity has no value.
            table[k] = np.percentile(inside, percentiles, method="higher")
    return TangentNorms(bounds, counts, table)


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseBank:
    """A cheap Frechet distance that follows one sampler through training.

    The noise, the conditions and the reference never change, so that its curve moves
    with the parameters alone. Its value is biased by the small bank: read the curve,
    and report numbers of `evaluate`.

    Attributes:
      draw: ``(params, eps, cond, key) -> samples``, jitted by the caller.
      eps: noise ``[N, ...]``.
      reference: moments of the data's features.
      features: ``samples [N, ...] -> [N, D]``, for example a `FeatureExtractor`.
      cond: conditions, or None.
      key: for samplers that re-noise.
    """

    draw: Callable[[Any, Any, Any, Any], Any]
    eps: Any
    reference: Moments
    features: Callable[[Any], Any]
    cond: Any = None
    key: Any = None

    def __call__(self, params: Any) -> float:
        """The Frechet distance of the bank's samples under these parameters."""
        x = np.asarray(self.draw(params, self.eps, self.cond, self.key))
        return frechet_distance(self.features(x), self.reference)
