"""Weights of noise levels: functions ``(ratio, next_ratio, sigma_d) -> weight``.

``ratio = sigma/alpha`` is the level at which the student's map begins and
``next_ratio`` the lower level that it is compared with, both ``[B]``; ``sigma_d`` is
the standard deviation of the data. A weight multiplies the squared (or other) distance
of two predictions of the clean sample. With ``SNR = 1 / ratio^2``, as the codes of
consistency models and of progressive distillation have it:

| weight | codes call it |
|---|---|
| `constant` | ``uniform``, ``constant`` |
| `snr` | ``snr``: a plain error of the noise on a variance-preserving path |
| `snr_plus_one` | ``snrp1``, ``v_mse``: a plain error of v there |
| `truncated_snr` | ``truncated_snr``, ``snr_trunc``: the larger of the first two |
| `inverse_gap` | ``1 / (t - tau)`` in noise levels (iCT, ECT) |
| `inverse_output_scale` | ``karras``: ``1 / c_out^2`` of EDM |
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax.diffusion.paths import Path, guard
from distilljax.runtime import words

Array = jax.Array
LevelWeight = Callable[[Array, Array, float], Array]


def noise_ratio(path: Path, t: Array) -> Array:
    """``sigma/alpha``, the noise level on which these papers lay their times."""
    return path.sigma(t) / guard(path.alpha(t))


def _snr(ratio: Array) -> Array:
    return 1.0 / guard(ratio) ** 2


@words.value
def constant(ratio: Array, next_ratio: Array, sigma_d: float) -> Array:
    """1 at every level."""
    return jnp.ones_like(ratio)


@words.value
def snr(ratio: Array, next_ratio: Array, sigma_d: float) -> Array:
    """``SNR = (alpha/sigma)^2``."""
    return _snr(ratio)


@words.value
def snr_plus_one(ratio: Array, next_ratio: Array, sigma_d: float) -> Array:
    """``SNR + 1``."""
    return _snr(ratio) + 1.0


@words.value
def truncated_snr(ratio: Array, next_ratio: Array, sigma_d: float) -> Array:
    """``max(SNR, 1)``."""
    return jnp.maximum(_snr(ratio), 1.0)


@words.value
def inverse_gap(ratio: Array, next_ratio: Array, sigma_d: float) -> Array:
    """``1 / (t - tau)`` in noise levels (iCT, ECT)."""
    return 1.0 / (ratio - next_ratio)


@words.value
def inverse_output_scale(ratio: Array, next_ratio: Array, sigma_d: float) -> Array:
    """``1 / c_out^2 = (t^2 + sigma_d^2) / (t sigma_d)^2`` (ECT on ImageNet)."""
    return (ratio**2 + sigma_d**2) / (ratio * sigma_d) ** 2
