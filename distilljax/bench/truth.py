"""Judging samples against a mixture whose density and flow are known."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax import evaluation
from distilljax.diffusion.oracles import GaussianMixture
from distilljax.diffusion.paths import Path

Array = jax.Array
# Exact samples have keys of their own, apart from those of training and sampling.
_EXACT, _FRESH = 2**30, 2**30 + 1
# Share of its weight from which on a mode counts as covered.
COVERED = 0.5
_PROBE, _FLOW_STEPS, _NEAREST = 1024, 256, 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """Statistics of samples of a mixture.

    Attributes:
      oracle: the mixture, in the units of the samples.
      inner: the same in the units of the networks.
      units: from the ones to the others.
      path: of the networks.
      count: samples of a seed, and of the exact reference.
    """

    oracle: GaussianMixture
    inner: GaussianMixture
    units: Any
    path: Path
    count: int
    labels: np.ndarray | None = None

    def exact(self, seed: int) -> np.ndarray:
        """Exact samples ``[count, D]``, fresh for every seed."""
        key = jax.random.fold_in(jax.random.key(_FRESH), seed)
        return np.asarray(self.oracle.sample(key, self.count))

    @functools.cached_property
    def reference(self) -> np.ndarray:
        """The exact samples that all others are compared with."""
        return np.asarray(self.oracle.sample(jax.random.key(_EXACT), self.count))

    @functools.cached_property
    def entropy(self) -> float:
        """``-E log p`` of the mixture, from a million exact samples."""
        total = 0.0
        for part in range(16):
            key = jax.random.fold_in(jax.random.key(_EXACT + 2), part)
            x = self.oracle.sample(key, 2**16)
            total -= float(jnp.mean(self.oracle.log_density(x)))
        return total / 16

    def statistics(self, x: np.ndarray) -> dict[str, Any]:
        """Numbers with a truth.

        Returns:
          ``energy_distance`` and ``sliced_wasserstein`` to exact samples;
          ``nll_excess``: ``-mean log p(x)`` above the entropy of the mixture, 0 for
          exact samples, in nats; ``mode_weights`` by posterior probability,
          ``weight_error``: half the sum of their distances from the truth;
          ``modes``: share of modes with at least half of their weight;
          ``precision``, ``recall``, ``coverage`` by nearest neighbours.
        """
        shares = np.asarray(posteriors(self.oracle, jnp.asarray(x))).mean(0)
        weights = np.asarray(self.oracle.weights)
        few, real = x[:_NEAREST], self.reference[:_NEAREST]
        near = evaluation.precision_recall(real, few)
        density = np.asarray(self.oracle.log_density(jnp.asarray(x)), np.float64)
        return {
            "energy_distance": evaluation.energy_distance(x, self.reference).value,
            "sliced_wasserstein": evaluation.sliced_wasserstein(
                x, self.reference, projections=64
            ).value,
            "nll_excess": float(-density.mean() - self.entropy),
            "mode_weights": shares.tolist(),
            "weight_error": float(0.5 * np.abs(shares - weights).sum()),
            "modes": float((shares >= COVERED * weights).mean()),
            "precision": near.precision,
            "recall": near.recall,
            "coverage": evaluation.density_coverage(real, few).coverage,
        }

    def paired(self, x: np.ndarray, eps: np.ndarray) -> dict[str, Any]:
        """``flow_error``: root mean square distance per element to where the exact
        flow takes the same noise."""
        truth = self.units.outer(self.flow(eps[:_PROBE]))
        return {"flow_error": float(np.sqrt(np.mean((x[:_PROBE] - truth) ** 2)))}

    def flow(self, eps: np.ndarray) -> np.ndarray:
        """The end of the exact flow, in the units of the networks."""
        return np.asarray(_flow(self.inner, self.path, jnp.asarray(eps)))

    def probe(self, x: np.ndarray) -> float:
        """Energy distance of a few samples."""
        few = self.reference[:_PROBE]
        return evaluation.energy_distance(x[:_PROBE], few).value


@functools.partial(jax.jit, static_argnums=1)
def _flow(oracle: GaussianMixture, path: Path, eps: Array) -> Array:
    return oracle.flow_map(path, steps=_FLOW_STEPS)(eps, path.t_max, path.t_min)


@jax.jit
def posteriors(oracle: GaussianMixture, x: Array) -> Array:
    """Probability of every component given the sample, ``[N, K]``."""
    return jax.nn.softmax(oracle.log_joint(x), axis=1)
