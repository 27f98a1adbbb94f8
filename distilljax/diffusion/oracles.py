"""Exact teachers: Gaussians and mixtures, whose fields and flow maps are closed forms.

For data ``N(m, c^2)`` every marginal is ``N(alpha m, n^2)`` with
``n^2 = alpha^2 c^2 + sigma^2``, and

    D(x, t) = m + alpha c^2 / n^2 (x - alpha m)
    v(x, t) = alpha' m + (alpha alpha' c^2 + sigma sigma') / n^2 (x - alpha m)
    Phi(x, t, s) = alpha_s m + (n_s / n_t) (x - alpha_t m).

They compute in the float type of the state, and serve tests and foreign code alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from distilljax.diffusion.fields import Field
from distilljax.diffusion.flow_maps import AffineFlowMap, FlowMap, ode_flow_map
from distilljax.diffusion.paths import Path, Time, expand, guard, trigflow
from distilljax.diffusion.predictions import VELOCITY, Prediction, carry, kind_of
from distilljax.diffusion.solvers import Heun, Solver

if TYPE_CHECKING:
    from distilljax.core.binding import Network

Array = jax.Array
_LOG_2PI = math.log(2.0 * math.pi)


def _dtype(*arrays: Array) -> jnp.dtype:
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _log_normal(centred: Array, variance: Array) -> Array:
    """Log density per element."""
    return -0.5 * (centred**2 / variance + jnp.log(variance) + _LOG_2PI)


class Gaussian(NamedTuple):
    """Data ``N(mean, std^2)``, independent elements.

    Attributes:
      mean: sample shape, or broadcasts against it.
      std: likewise; 0 is a point.
    """

    mean: Array
    std: Array

    def _at(self, path: Path, x: Array, t: Time) -> tuple[Array, Array, Array, Array]:
        """``(alpha, sigma, variance, x - alpha mean)``."""
        t = expand(t, x)
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = guard((alpha * self.std) ** 2 + sigma**2)
        return alpha, sigma, variance, x - alpha * self.mean

    def denoised(self, path: Path) -> Field:
        """``E[x0 | x_t]``."""

        def field(x: Array, t: Time) -> Array:
            alpha, _, variance, centred = self._at(path, x, t)
            return self.mean + alpha * self.std**2 / variance * centred

        return field

    def eps(self, path: Path) -> Field:
        """``E[eps | x_t]``."""

        def field(x: Array, t: Time) -> Array:
            _, sigma, variance, centred = self._at(path, x, t)
            return sigma / variance * centred

        return field

    def score(self, path: Path) -> Field:
        """``grad log p_t(x)``."""

        def field(x: Array, t: Time) -> Array:
            _, _, variance, centred = self._at(path, x, t)
            return -centred / variance

        return field

    def velocity(self, path: Path) -> Field:
        """``dx_t/dt`` of the probability-flow ODE."""

        def field(x: Array, t: Time) -> Array:
            alpha, sigma, variance, centred = self._at(path, x, t)
            te = expand(t, x)
            drift, spread = path.alpha_dot(te), path.sigma_dot(te)
            rate = (alpha * drift * self.std**2 + sigma * spread) / variance
            return drift * self.mean + rate * centred

        return field

    def flow_map(self, path: Path) -> GaussianFlowMap:
        """The exact flow map; see `GaussianFlowMap`."""
        return GaussianFlowMap(self, path)

    def affine_map(
        self, path: Path, kind: str | Prediction = VELOCITY
    ) -> AffineFlowMap:
        """The exact flow map as ``a x + b F``, ``F`` of a kind, ``s = t`` included.

        With ``(c alpha, sigma) = n (cos phi, sin phi)``, ``phi`` the mean of both ends'
        angles and ``h`` half their difference,

            F = a_t m + (b_t sin phi + c a_t cos phi) / (n_t cos h) (x - alpha_t m),

        where ``p = a_t X + b_t E`` defines the kind. At ``s = t`` it is the prediction
        itself.

        Args:
          path: path of the states and times.
          kind: kind of the output.

        Returns:
          The map. Its output is exact up to rounding in every float type.
        """
        kind = kind_of(kind)

        def output(x: Array, t: Time, s: Time) -> Array:
            _, _, variance, centred = self._at(path, x, t)
            te, se = expand(t, x), expand(s, x)
            a, b = kind.pair(path, te)
            start, end = (
                jnp.arctan2(path.sigma(u), self.std * path.alpha(u)) for u in (te, se)
            )
            middle, half = 0.5 * (start + end), 0.5 * (start - end)
            gain = b * jnp.sin(middle) + self.std * a * jnp.cos(middle)
            return a * self.mean + gain / (jnp.sqrt(variance) * jnp.cos(half)) * centred

        return AffineFlowMap(output, path, kind)

    def noised(self, path: Path, t: float | Array) -> Gaussian:
        """Marginal at one time ``t``, a scalar."""
        t = jnp.asarray(t, _dtype(self.mean, self.std))
        alpha = path.alpha(t)
        return Gaussian(alpha * self.mean, jnp.hypot(alpha * self.std, path.sigma(t)))

    def log_density(self, x: Array, path: Path | None = None, t: Time = 0.0) -> Array:
        """Log density ``[B]`` of ``x_t``, ``[B, ...]``; of the data without a path."""
        if path is None:
            terms = _log_normal(x - self.mean, jnp.asarray(self.std**2, x.dtype))
        else:
            _, _, variance, centred = self._at(path, x, t)
            terms = _log_normal(centred, variance)
        terms = jnp.broadcast_to(terms, x.shape)
        return jnp.sum(terms, axis=tuple(range(1, x.ndim)))

    def sample(self, key: Array, n: int) -> Array:
        """``n`` data samples ``[n, *shape]``."""
        shape = jnp.broadcast_shapes(jnp.shape(self.mean), jnp.shape(self.std))
        eps = jax.random.normal(key, (n, *shape), _dtype(self.mean, self.std))
        return self.mean + self.std * eps


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianFlowMap:
    """``alpha_s m + (n_s / n_t)(x - alpha_t m)``.

    Attributes:
      oracle: the data.
      path: path of the states and times.
    """

    oracle: Gaussian
    path: Path

    def __call__(self, x: Array, t: Time, s: Time) -> Array:
        """The state at ``s``; see `distilljax.flow_maps.FlowMap`."""
        mean, std, path = *self.oracle, self.path
        te, se = expand(t, x), expand(s, x)
        n_t, n_s = (jnp.hypot(path.alpha(u) * std, path.sigma(u)) for u in (te, se))
        return path.alpha(se) * mean + n_s / guard(n_t) * (x - path.alpha(te) * mean)


class GaussianMixture(NamedTuple):
    """Data from a mixture of isotropic Gaussians.

    Attributes:
      weights: ``[K]``, positive; need not add up to 1.
      means: ``[K, *sample_shape]``.
      stds: ``[K]``, positive.
    """

    weights: Array
    means: Array
    stds: Array

    def _at(
        self, path: Path | None, x: Array, t: Time
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Per component ``[B, K, ...]``: alpha, sigma, variance, centred, log joint."""
        te = expand(t, x)
        if path is None:
            alpha, sigma = jnp.ones_like(te)[:, None], jnp.zeros_like(te)[:, None]
        else:
            alpha, sigma = path.alpha(te)[:, None], path.sigma(te)[:, None]
        means, stds = self.means[None], self._stds()
        variance = (alpha * stds) ** 2 + sigma**2
        centred = x[:, None] - alpha * means
        terms = jnp.broadcast_to(_log_normal(centred, variance), centred.shape)
        joint = jnp.sum(terms, axis=tuple(range(2, terms.ndim)))
        joint += jax.nn.log_softmax(jnp.log(self.weights))
        return alpha, sigma, variance, centred, joint

    def _stds(self) -> Array:
        return self.stds.reshape((1, -1) + (1,) * (self.means.ndim - 1))

    def _mean(self, values: Array, joint: Array) -> Array:
        """Mean over components under their posterior probabilities."""
        share = jax.nn.softmax(joint, axis=1)
        return jnp.sum(expand(share, values) * values, axis=1)

    def denoised(self, path: Path) -> Field:
        """``E[x0 | x_t]``."""

        def field(x: Array, t: Time) -> Array:
            alpha, _, variance, centred, joint = self._at(path, x, t)
            gain = alpha * self._stds() ** 2 / variance
            return self._mean(self.means[None] + gain * centred, joint)

        return field

    def eps(self, path: Path) -> Field:
        """``E[eps | x_t]``."""

        def field(x: Array, t: Time) -> Array:
            _, sigma, variance, centred, joint = self._at(path, x, t)
            return self._mean(sigma / variance * centred, joint)

        return field

    def score(self, path: Path) -> Field:
        """``grad log p_t(x)``."""

        def field(x: Array, t: Time) -> Array:
            _, _, variance, centred, joint = self._at(path, x, t)
            return self._mean(-centred / variance, joint)

        return field

    def velocity(self, path: Path) -> Field:
        """``dx_t/dt`` of the probability-flow ODE."""

        def field(x: Array, t: Time) -> Array:
            alpha, sigma, variance, centred, joint = self._at(path, x, t)
            te = expand(t, x)
            drift, spread = path.alpha_dot(te)[:, None], path.sigma_dot(te)[:, None]
            rate = (alpha * drift * self._stds() ** 2 + sigma * spread) / variance
            return self._mean(drift * self.means[None] + rate * centred, joint)

        return field

    def flow_map(
        self, path: Path, *, steps: int = 128, solver: Solver = Heun()
    ) -> FlowMap:
        """The flow map by a fine solve.

        The solve runs on the TrigFlow path, where every path's velocity is bounded and
        equal steps suit the data end and the noise end alike.

        Args:
          path: path of the states and times; the map's ``path``.
          steps: solver steps between ``t`` and ``s``.
          solver: solver.

        Returns:
          The map; its error falls with ``steps`` at the solver's order.
        """
        circle = trigflow()
        inner = ode_flow_map(self.velocity(circle), circle, steps=steps, solver=solver)

        def flow_map(x: Array, t: Time, s: Time) -> Array:
            on_circle, angle = carry(path, circle, x, t)
            s = jnp.asarray(s, x.dtype)
            moved = inner(on_circle, angle, path.angle(s))
            return moved * expand(jnp.hypot(path.alpha(s), path.sigma(s)), x)

        return MixtureFlowMap(flow_map, path)

    def noised(self, path: Path, t: float | Array) -> GaussianMixture:
        """Marginal at one time ``t``, a scalar."""
        t = jnp.asarray(t, _dtype(self.means, self.stds))
        alpha = path.alpha(t)
        stds = jnp.hypot(alpha * self.stds, path.sigma(t))
        return self._replace(means=alpha * self.means, stds=stds)

    def log_density(self, x: Array, path: Path | None = None, t: Time = 0.0) -> Array:
        """Log density ``[B]`` of ``x_t``, ``[B, ...]``; of the data without a path."""
        return jax.nn.logsumexp(self.log_joint(x, path, t), axis=1)

    def log_joint(self, x: Array, path: Path | None = None, t: Time = 0.0) -> Array:
        """Log density with every component ``[B, K]``; its softmax says which."""
        return self._at(path, x, t)[-1]

    def sample(self, key: Array, n: int) -> Array:
        """``n`` data samples ``[n, *sample_shape]``."""
        pick, draw = jax.random.split(key)
        index = jax.random.categorical(pick, jnp.log(self.weights), shape=(n,))
        shape = (n, *self.means.shape[1:])
        eps = jax.random.normal(draw, shape, _dtype(self.means, self.stds))
        return self.means[index] + expand(self.stds[index], eps) * eps


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureFlowMap:
    """A flow map with its path; see `GaussianMixture.flow_map`."""

    run: Callable[[Array, Time, Time], Array]
    path: Path

    def __call__(self, x: Array, t: Time, s: Time) -> Array:
        """The state at ``s``; see `distilljax.flow_maps.FlowMap`."""
        return self.run(x, t, s)


def ring(modes: int = 6, radius: float = 1.0, std: float = 0.15) -> GaussianMixture:
    """Equal modes on a circle in the plane.

    Args:
      modes: number of modes, at least 1.
      radius: radius of the circle.
      std: standard deviation of a mode, positive.
    """
    if modes < 1 or std <= 0.0:
        raise ValueError(f"modes and std must be positive, got {modes} and {std}")
    angle = 2.0 * math.pi * jnp.arange(modes) / modes
    means = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return GaussianMixture(jnp.full(modes, 1.0 / modes), means, jnp.full(modes, std))


_FIELDS = {"x0": "denoised", "eps": "eps", "score": "score", "velocity": "velocity"}


def prediction(
    oracle: Gaussian | GaussianMixture, path: Path, kind: str | Prediction
) -> Field:
    """The exact field of any kind."""
    kind = kind_of(kind)
    if kind.name in _FIELDS:
        return getattr(oracle, _FIELDS[kind.name])(path)
    clean, noise = oracle.denoised(path), oracle.eps(path)

    def field(x: Array, t: Time) -> Array:
        a, b = kind.pair(path, expand(t, x))
        return a * clean(x, t) + b * noise(x, t)

    return field


def network(
    oracle: Gaussian | GaussianMixture,
    path: Path,
    kind: str | Prediction = VELOCITY,
    *,
    two_time: bool = False,
) -> Network:
    """An oracle in the form of a network, to stand in for a trained teacher.

    Args:
      oracle: the data.
      path: path on which it predicts.
      kind: kind of its prediction.
      two_time: also takes the end time and is the exact flow map; for a `Gaussian`.

    Returns:
      A network without parameters: ``init`` gives an empty tree, ``apply`` ignores it
      and the condition.

    Raises:
      ValueError: if a mixture shall take two times (its output has no closed form).
    """
    from distilljax.core.binding import Network, normalization

    kind = kind_of(kind)
    if two_time and not isinstance(oracle, Gaussian):
        raise ValueError("two_time needs a Gaussian: a mixture's map is no closed form")
    field = prediction(oracle, path, kind)

    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        del params, cond, taps, rng
        divisor, scale = normalization(path, kind, x, t)
        if s is None or not isinstance(oracle, Gaussian):
            return field(x * divisor, t) / scale
        return oracle.affine_map(path, kind).output(x * divisor, t, s) / scale

    return Network(
        name=f"exact {type(oracle).__name__}",
        apply=apply,
        init=lambda key: {},
        path=path,
        prediction=kind,
        capabilities=frozenset({"jvp", "second_time"} if two_time else {"jvp"}),
    )
