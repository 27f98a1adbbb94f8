"""Kinds of network predictions and every conversion between them and between paths.

With the known endpoint removed a state is ``x = alpha X + sigma E`` and a prediction of
any kind is ``p = a X + b E``, where ``X`` and ``E`` are the clean sample and the noise
that the prediction implies. Solving the two equations,

    X = (b x - sigma p) / det,   E = (alpha p - a x) / det,   det = alpha b - sigma a,

gives every conversion: `decompose` with the source's ``(a, b)``, `recompose` with the
target's. ``(X, E)`` does not depend on the path, so the same two calls carry a
prediction to another path. ``det`` is bounded away from 0 for velocity, v and F, which
makes all of theirs regular at both ends; the closed forms in the literature
(SANA-Sprint for linear to TrigFlow, rCM's wrapper, EDM's preconditioning) are special
cases.

| kind | a | b | det |
|---|---|---|---|
| x0 | 1 | 0 | -sigma |
| eps | 0 | 1 | alpha |
| score | 0 | -1/sigma | -alpha/sigma |
| velocity | alpha' | sigma' | linear: 1, TrigFlow: sigma_d, EDM: 1 |
| v | -sigma | alpha | alpha^2 + sigma^2 |
| F | -sigma/(n sigma_d) | alpha sigma_d/n | n/sigma_d, n = path.scale(t) |

``F`` is the unit-variance output of TrigFlow on any path: on `trigflow` it is the
velocity over ``sigma_d``, on `edm` it is minus EDM's raw output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distilljax.diffusion.paths import Path, Time, expand, guard
from distilljax.runtime.errors import unknown

Array = jax.Array


class Prediction(NamedTuple):
    """A kind of prediction ``p = a X + b E``.

    Attributes:
      name: how cards and error messages call it.
      pair: ``(path, t) -> (a, b)``, elementwise.
    """

    name: str
    pair: Callable[[Path, Array], tuple[Array, Array]]


def _x0(path: Path, t: Array) -> tuple[Array, Array]:
    return jnp.ones_like(t), jnp.zeros_like(t)


def _eps(path: Path, t: Array) -> tuple[Array, Array]:
    return jnp.zeros_like(t), jnp.ones_like(t)


def _score(path: Path, t: Array) -> tuple[Array, Array]:
    return jnp.zeros_like(t), -1.0 / guard(path.sigma(t))


def _velocity(path: Path, t: Array) -> tuple[Array, Array]:
    return path.alpha_dot(t), path.sigma_dot(t)


def _v(path: Path, t: Array) -> tuple[Array, Array]:
    return -path.sigma(t), path.alpha(t)


def _f(path: Path, t: Array) -> tuple[Array, Array]:
    n = path.scale(t)
    return -path.sigma(t) / (n * path.sigma_d), path.alpha(t) * path.sigma_d / n


X0 = Prediction("x0", _x0)
EPS = Prediction("eps", _eps)
SCORE = Prediction("score", _score)
VELOCITY = Prediction("velocity", _velocity)
V = Prediction("v", _v)
F = Prediction("F", _f)

KINDS = {p.name: p for p in (X0, EPS, SCORE, VELOCITY, V, F)}


def kind_of(kind: str | Prediction) -> Prediction:
    """Looks a kind up by name.

    Raises:
      ValueError: if there is no such kind; names the near ones.
    """
    if isinstance(kind, Prediction):
        return kind
    if kind not in KINDS:
        raise ValueError(unknown("prediction kind", kind, KINDS))
    return KINDS[kind]


def decompose(
    path: Path,
    kind: str | Prediction,
    prediction: Array,
    x: Array,
    t: Time,
    y: Array | None = None,
) -> tuple[Array, Array]:
    """The clean sample and the noise that a prediction implies.

    Args:
      path: path of ``x`` and ``t``.
      kind: kind of ``prediction``.
      prediction: output of a network at ``(x, t)``, ``[B, ...]``.
      x: state, shape of ``prediction``.
      t: time in the path's clock.
      y: known endpoint of a bridge.

    Returns:
      ``(X, E)`` with ``x = alpha X + beta y + sigma E``. At an end where the kind does
      not determine one of the two (x0 at ``sigma = 0``, eps at ``alpha = 0``) the
      divisor is held at a tiny positive number.
    """
    kind = kind_of(kind)
    t = expand(t, x)
    x = path.strip(x, t, y)
    alpha, sigma = path.alpha(t), path.sigma(t)
    if kind is X0:
        return prediction, (x - alpha * prediction) / guard(sigma)
    if kind is EPS or kind is SCORE:
        eps = prediction if kind is EPS else -sigma * prediction
        return (x - sigma * eps) / guard(alpha), eps
    if kind is VELOCITY and y is not None:
        prediction = prediction - path.beta_dot(t) * y
    a, b = kind.pair(path, t)
    det = guard(alpha * b - sigma * a)
    return (b * x - sigma * prediction) / det, (alpha * prediction - a * x) / det


def recompose(
    path: Path,
    kind: str | Prediction,
    denoised: Array,
    eps: Array,
    t: Time,
    y: Array | None = None,
) -> Array:
    """The prediction of a kind from a clean sample and a noise; inverse of `decompose`.

    Args:
      path: path of ``t``.
      kind: kind wanted.
      denoised: clean sample ``X``, ``[B, ...]``.
      eps: noise ``E``, shape of ``denoised``.
      t: time in the path's clock.
      y: known endpoint of a bridge (velocity gains ``beta' y``).

    Returns:
      The prediction, shape of ``denoised``.
    """
    kind = kind_of(kind)
    if kind is X0:
        return denoised
    if kind is EPS:
        return eps
    t = expand(t, denoised)
    a, b = kind.pair(path, t)
    out = a * denoised + b * eps
    if kind is VELOCITY and y is not None:
        out = out + path.beta_dot(t) * y
    return out


def convert(
    path: Path,
    prediction: Array,
    x: Array,
    t: Time,
    source: str | Prediction,
    target: str | Prediction,
    y: Array | None = None,
) -> Array:
    """A prediction of kind ``source`` as kind ``target``, at the same ``(x, t)``.

    Args:
      path: path of ``x`` and ``t``.
      prediction: ``[B, ...]``.
      x: state, shape of ``prediction``.
      t: time in the path's clock.
      source: kind that came.
      target: kind wanted.
      y: known endpoint of a bridge.

    Returns:
      The converted prediction; ``prediction`` itself when the kinds are equal.
    """
    source, target = kind_of(source), kind_of(target)
    if source is target:
        return prediction
    denoised, eps = decompose(path, source, prediction, x, t, y)
    return recompose(path, target, denoised, eps, t, y)


def carry(source: Path, target: Path, x: Array, t: Time) -> tuple[Array, Array]:
    """A point ``(x, t)`` of path ``source`` as the same point of path ``target``.

    Matches the noise angle, hence log-SNR, and rescales the state. Differentiable in
    ``x`` and ``t``, ends included: times below ``target.t_min``, where sigma of some
    paths has an infinite slope and no network is asked, become ``target.t_min``.

    Args:
      source: path on which ``x`` and ``t`` live.
      target: path wanted.
      x: state, ``[B, ...]``.
      t: time in the source's clock, scalar or leading axes of ``x``.

    Returns:
      ``(x', t')`` with ``t'`` of the shape of ``t``.
    """
    if source == target:
        return x, jnp.asarray(t)
    if source.bridges or target.bridges:
        raise ValueError("a bridge path has no view on another path: strip y first")
    t = jnp.asarray(t, jnp.promote_types(jnp.result_type(t), jnp.float32))
    u = target.time_of_angle(source.angle(t))
    u = jnp.maximum(u, target.t_min) if target.t_min > 0.0 else u
    ratio = jnp.hypot(target.alpha(u), target.sigma(u)) / jnp.hypot(
        source.alpha(t), source.sigma(t)
    )
    return x * expand(ratio, x), u
