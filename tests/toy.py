"""Small networks in plain JAX for tests."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax import paths
from distilljax.core.binding import Network
from distilljax.diffusion.paths import Path

Array = jax.Array
FREQUENCIES = (1.0, 2.0, 4.0)


def _dense(key: Array, size_in: int, size_out: int, scale: float = 1.0) -> dict:
    w = jax.random.normal(key, (size_in, size_out)) * scale / math.sqrt(size_in)
    return {"w": w, "b": jnp.zeros((size_out,))}


def _linear(params: dict, x: Array) -> Array:
    return x @ params["w"] + params["b"]


def _clock(path: Path | None) -> Callable[[Array], Array]:
    """Times as the features see them: logarithmic on clocks that reach far."""
    if path is not None and path.t_max > 2.0:
        return lambda t: 0.25 * jnp.log(jnp.maximum(t, 1e-3))
    return lambda t: t


def time_features(t: Array) -> Array:
    """``[sin(k t), cos(k t) - 1, t]``, ``[..., 7]``; all vanish at 0."""
    angles = t[..., None] * jnp.asarray(FREQUENCIES, t.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles) - 1.0, t[..., None]], -1)


def mlp(
    shape: tuple[int, ...] = (2,),
    *,
    path: Path | None = None,
    prediction: str = "velocity",
    hidden: int = 32,
    second_time: bool = False,
    num_classes: int | None = None,
    name: str = "mlp",
) -> Network:
    """A network of two hidden layers over flattened samples.

    Args:
      shape: sample shape; ``x`` is ``[B, *shape]``.
      path: default the linear path.
      prediction: kind of its prediction.
      hidden: width.
      second_time: whether it takes ``s``, through ``h = t - s`` with zero-initialised
        weights, so that at the start it equals the network without.
      num_classes: integer labels ``[B]`` as condition; the null label is one more.
      name: how errors call it.

    Returns:
      The network, with ``taps`` (both hidden layers) and, with labels, ``null``. It
      computes in the dtype of its input and parameters.
    """
    path = paths.linear() if path is None else path
    size, clock = math.prod(shape), _clock(path)
    n_time = 2 * len(FREQUENCIES) + 1

    def init(key: Array) -> dict:
        keys = jax.random.split(key, 5)
        params = {
            "in": _dense(keys[0], size, hidden),
            "time": _dense(keys[1], n_time, hidden),
            "mid": _dense(keys[2], hidden, hidden),
            "out": _dense(keys[3], hidden, size),
        }
        if second_time:
            params["second"] = {"w": jnp.zeros((n_time, hidden))}
        if num_classes is not None:
            table = jax.random.normal(keys[4], (num_classes + 1, hidden))
            params["label"] = {"w": 0.5 * table}
        return params

    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        del rng
        flat = x.reshape(x.shape[0], -1)
        t = clock(t)
        embedding = _linear(params["time"], time_features(t))
        if s is not None:
            embedding += time_features(t - clock(s)) @ params["second"]["w"]
        if num_classes is not None:
            row = num_classes if cond is None else cond
            embedding += params["label"]["w"][row]
        first = jax.nn.silu(_linear(params["in"], flat) + embedding)
        second = jax.nn.silu(_linear(params["mid"], first) + embedding)
        out = _linear(params["out"], second).reshape(x.shape)
        return (out, (first, second)) if taps else out

    capabilities = {"jvp", "taps"}
    capabilities |= {"second_time"} if second_time else set()
    capabilities |= set() if num_classes is None else {"null"}
    null = None
    if num_classes is not None:

        def null(cond):
            return jnp.full_like(cond, num_classes)

    return Network(
        name=name,
        apply=apply,
        init=init,
        path=path,
        prediction=prediction,
        capabilities=frozenset(capabilities),
        null=null,
        num_classes=num_classes,
    )


def head(*, hidden: int = 32, num_classes: int | None = None) -> Network:
    """Logits ``[B]`` of the taps of `mlp`: function ``logits(features, t, cond)``."""

    def init(key: Array) -> dict:
        keys = jax.random.split(key, 3)
        params = {
            "first": _dense(keys[0], hidden, 1),
            "second": _dense(keys[1], hidden, 1),
            "time": _dense(keys[2], 2 * len(FREQUENCIES) + 1, 1),
        }
        if num_classes is not None:
            params["label"] = {"w": jnp.zeros((num_classes + 1, 1))}
        return params

    def logits(params, features, t, cond=None):
        first, second = features
        t = jnp.broadcast_to(jnp.asarray(t, first.dtype), first.shape[:1])
        out = _linear(params["first"], first) + _linear(params["second"], second)
        out += _linear(params["time"], time_features(t))
        if num_classes is not None:
            out += params["label"]["w"][num_classes if cond is None else cond]
        return out[:, 0]

    return Network(
        name="head",
        apply=None,
        init=init,
        functions={"logits": logits},
        num_classes=None,
    )


def cast(params: dict, dtype=jnp.float64) -> dict:
    """Parameters in another dtype."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
