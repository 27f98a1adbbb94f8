"""Diagnostics while a method trains, for losses that say nothing about quality.

The losses of distribution matching, of GANs and of SiD neither fall nor rise with the
quality of samples. `Diagnosis` looks at the samples of a fixed bank of noise instead;
`api.fit` calls it every ``diagnose_every`` cycles and logs what it finds as
``diagnose/<name>``. docs/evaluation.md says what to do about each sign.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.core.binding import Bound, Network
from distilljax.core.method import Method
from distilljax.evaluation import diagnostics, moments_of
from distilljax.evaluation.statistics import frechet_distance
from distilljax.sampling import generation
from distilljax.training import distributed
from distilljax.training.results import View
from distilljax.training.roles import network_of

Array = jax.Array
# Samples of the bank; features beyond so many are projected to as many.
BANK, FEATURES = 512, 128
# Shares of the largest noise angle at which tangents are measured.
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
PERCENTILES = (50, 95)
# Samples of a class from which on its diversity is judged.
_LEAST = 8
_SEED = 0


class Diagnosis:
    """``View -> metrics``: see the module docstring.

    Metrics:

    - ``frechet``: Frechet distance of the bank to the data on flattened samples, by a
      fixed random projection where they are large. Biased by the small bank; its curve
      counts.
    - ``drift_mean``, ``drift_std``: see `diagnostics.latent_drift`.
    - ``diversity``: see `diagnostics.collapse`, the mean over classes; ``collapsed`` is
      1 below ``threshold``, and the first time a warning says so.
    - ``critic_lag``: see `diagnostics.critic_lag`, for methods with a role
      ``fake_score``. Its own samples are those of the bank at the last look, which it
      was trained on in between; from the second look on.
    - ``tangent_p<percentile>/<share of the noise angle>``: norms of ``d f(x_t, t, 0) /
      dt`` along the flow, per element, for students that need a ``jvp``.

    Without data (``x0``) in the source, the first four are left out.
    """

    def __init__(
        self,
        method: Method,
        networks: Mapping[str, Network],
        source: Any,
        *,
        steps: int = 1,
        threshold: float = 0.7,
    ):
        """Reads a few data; nothing is compiled before the first look.

        Args:
          method: the method.
          networks: by key, as they train.
          source: the data source.
          steps: evaluations of the sampler.
          threshold: diversity below which to raise the alarm.
        """
        self.method, self.threshold = method, threshold
        self.network = network_of(method.roles, method.sampling.role, networks)
        self.path = generation.sampling_path(method, self.network)
        self._networks = networks
        self._data = _taken(source)
        shape = tuple(source.sample_shape)
        self._eps = np.asarray(generation.initial_noise(_SEED, 0, BANK, shape))
        self._cond = self._data.get("cond")
        self._start = self._data.get(method.sampling.start or "")
        self._draw = jax.jit(generation.student_sampler(method, self.network, steps))
        # One program each for all looks.
        self._denoise = jax.jit(self._denoised)
        self._norms = jax.jit(self._tangent_norms)
        self._features = _Features(shape)
        self._last: np.ndarray | None = None
        self._warned = False
        if "x0" in self._data:
            self._reference = moments_of([self._features(self._data["x0"])])

    def __call__(self, view: View) -> dict[str, float]:
        """What the parameters of a view give."""
        params = view.params(self.method.sampling.role)
        key = jax.random.key(_SEED)
        eps = self._eps if self._start is None else self._start
        x = distributed.whole(self._draw(params, eps, self._cond, key))
        out: dict[str, float] = {}
        if not np.isfinite(x).all():
            # The loop names what is wrong; statistics of NaN say nothing.
            return {"finite": 0.0}
        if "x0" in self._data:
            out |= self._of_samples(x)
        if "fake_score" in self.method.roles:
            if self._last is not None:
                out["critic_lag"] = self._lag(view, self._last, x)
            self._last = x
        if "jvp" in self.method.roles[self.method.sampling.role].needs:
            out |= self._tangents(view)
        return out

    def _of_samples(self, x: np.ndarray) -> dict[str, float]:
        real = self._data["x0"]
        drift = diagnostics.latent_drift(_channels(x), _channels(real))
        diversity = self._diversity(x)
        alarm = diversity < self.threshold
        if alarm and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.method.name}: samples of one class differ by {diversity:.2f} "
                f"of what data do (below {self.threshold:g}): the student collapses; "
                "docs/evaluation.md says what to do",
                stacklevel=2,
            )
        return {
            "frechet": frechet_distance(self._features(x), self._reference),
            "drift_mean": drift.mean,
            "drift_std": drift.std,
            "diversity": diversity,
            "collapsed": float(alarm),
        }

    def _diversity(self, x: np.ndarray) -> float:
        """Mean over classes; all samples together without labels, or with few each."""
        real, cond = self._data["x0"], self._cond
        rows = [np.arange(len(x))]
        if isinstance(cond, np.ndarray) and cond.ndim == 1:
            groups = [np.flatnonzero(cond == label) for label in np.unique(cond)]
            rows = [group for group in groups if len(group) >= _LEAST] or rows
        found = [
            diagnostics.collapse(_flat(x[group]), _flat(real[group])).diversity
            for group in rows
        ]
        return float(np.mean(found))

    def _lag(self, view: View, own: np.ndarray, fresh: np.ndarray) -> float:
        network = network_of(self.method.roles, "fake_score", self._networks)
        path = generation.own_path(network)
        params = view.params("fake_score", ema=False)
        # In the middle: near the data all is denoised, near noise nothing.
        angle = path.angle(jnp.asarray(path.t_max, jnp.float32))
        share = 0.2 + 0.6 * (np.arange(len(own)) % 8) / 7
        t = path.time_of_angle(angle * jnp.asarray(share, jnp.float32))
        denoiser = functools.partial(self._denoise, params, self._cond)
        return diagnostics.critic_lag(denoiser, own, fresh, self._eps, t, path).ratio

    def _denoised(self, params: Any, cond: Any, x: Array, t: Array) -> Array:
        """The fake score as a denoiser."""
        network = network_of(self.method.roles, "fake_score", self._networks)
        return Bound("fake_score", network, params).denoiser(cond)(x, t)

    def _tangents(self, view: View) -> dict[str, float]:
        params = view.params(self.method.sampling.role)
        teacher = None
        if "teacher" in self.method.roles:
            teacher = view.params("teacher")
        norms = distributed.whole(
            self._norms(params, teacher, self._clean(), self._eps, self._cond)
        )
        out = {}
        for share, row in zip(LEVELS, norms, strict=True):
            row = np.where(np.isfinite(row), row, np.inf)
            values = np.percentile(row, PERCENTILES, method="higher")
            for percent, value in zip(PERCENTILES, values, strict=True):
                out[f"tangent_p{percent}/{share:g}"] = float(value)
        return out

    def _clean(self) -> np.ndarray:
        return self._data.get("x0", np.zeros_like(self._eps))

    def _tangent_norms(
        self, params: Any, teacher: Any, x0: Array, eps: Array, cond: Any
    ) -> Array:
        """Norms per element ``[levels, BANK]``."""
        path = self.path
        f = generation.student_map(self.method, self.network, params, cond)

        def at(share: Array) -> Array:
            top = path.angle(jnp.asarray(path.t_max, jnp.float32))
            t = jnp.full(len(x0), path.time_of_angle(share * top), jnp.float32)
            x = path.noise(x0, eps, t)
            v = path.velocity(x0, eps, t)
            if teacher is not None:
                network = network_of(self.method.roles, "teacher", self._networks)
                v = Bound("teacher", network, teacher).velocity(cond, path=path)(x, t)
            end = jnp.zeros_like(t)
            _, moved = jax.jvp(lambda x, t: f(x, t, end), (x, t), (v, jnp.ones_like(t)))
            axes = tuple(range(1, moved.ndim))
            return jnp.sqrt(jnp.mean(jnp.square(moved), axis=axes))

        return jax.lax.map(at, jnp.asarray(LEVELS))


class _Features:
    """Samples flattened, or projected to `FEATURES` numbers by fixed directions."""

    def __init__(self, shape: tuple[int, ...]):
        size = int(np.prod(shape))
        self._matrix = None
        if size > FEATURES:
            rng = np.random.default_rng(_SEED)
            self._matrix = rng.normal(size=(size, FEATURES)) / np.sqrt(size)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        flat = _flat(x).astype(np.float64)
        return flat if self._matrix is None else flat @ self._matrix


def _flat(x: np.ndarray) -> np.ndarray:
    return np.reshape(x, (len(x), -1))


def _channels(x: np.ndarray) -> np.ndarray:
    """Images by channel; the elements of a vector are its channels."""
    return np.reshape(x, (-1, x.shape[-1]))


def _taken(source: Any) -> dict[str, Any]:
    """Fields of `BANK` samples, spread over the source and repeated if it is small."""
    from distilljax.data import pipeline

    at = np.linspace(0, len(source) - 1, min(BANK, len(source))).round().astype(int)
    fields = pipeline.take(source, at)
    rows = np.arange(BANK) % len(at)
    return jax.tree.map(lambda values: np.asarray(values)[rows], fields)
