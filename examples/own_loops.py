"""What the own loops beside this file share: a problem, a network, a judge.

The problem is a mixture of six Gaussians on a ring, whose score, velocity and flow are
known, so that a student can be compared with exact samples. The network is thirty lines
of plain JAX: nothing here or in the loops knows the library's trainer, networks or
configs. Losses, paths and transforms come from distilljax, optimizers from optax.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distilljax import evaluation, oracles

Array = jax.Array

RING = oracles.ring(6, radius=1.0, std=0.15)
CHUNK = 100


def init(key: Array, times: int, width: int = 128, depth: int = 3) -> list[Any]:
    """Parameters of an mlp on a point of the plane and a number of times."""
    sizes = [2 + 17 * times, *[width] * depth, 2]
    layers = []
    for inward, outward in zip(sizes[:-1], sizes[1:], strict=True):
        key, own = jax.random.split(key)
        kernel = jax.random.normal(own, (inward, outward)) * inward**-0.5
        layers.append({"kernel": kernel, "bias": jnp.zeros(outward)})
    layers[-1]["kernel"] = jnp.zeros_like(layers[-1]["kernel"])
    return layers


def net(params: list[Any], x: Array, *times: Array) -> Array:
    """From ``x [B, 2]`` and times, ``[B]`` or one, to ``[B, 2]``; 0 at first."""
    waves = 0.5 * jnp.arange(1.0, 9.0)
    parts = [x]
    for t in times:
        t = jnp.broadcast_to(t, x.shape[:1])
        angle = t[:, None] * waves
        parts += [t[:, None], jnp.sin(angle), jnp.cos(angle)]
    h = jnp.concatenate(parts, -1)
    for layer in params[:-1]:
        h = jax.nn.silu(h @ layer["kernel"] + layer["bias"])
    return h @ params[-1]["kernel"] + params[-1]["bias"]


def adam(lr: float, steps: int) -> optax.GradientTransformation:
    """Adam with a warm-up, a cosine to 0 and a clip."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, min(100, steps // 10), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def train(step: Callable[[Any, Array], Any], state: Any, steps: int, seed: int) -> Any:
    """Runs ``step(state, key) -> state``, many steps a program."""
    run = jax.jit(lambda state, keys: jax.lax.scan(step_of(step), state, keys)[0])
    keys = jax.random.split(jax.random.key(seed), steps)
    for first in range(0, steps, CHUNK):
        state = run(state, keys[first : first + CHUNK])
    return state


def step_of(step: Callable[[Any, Array], Any]) -> Callable[[Any, Array], Any]:
    """The step as `jax.lax.scan` wants it."""
    return lambda state, key: (step(state, key), None)


def average(old: Any, new: Any, decay: float = 0.99) -> Any:
    """Exponential average of parameters."""
    return jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, old, new)


def judged(samples: Array) -> tuple[float, float]:
    """Sliced Wasserstein distance to exact samples, and its floor.

    Means over four sets of exact samples; the floor is that of other exact samples, so
    that no student is expected much below.
    """
    own, floor = [], []
    for seed in range(0, 8, 2):
        exact, other = (
            np.asarray(RING.sample(jax.random.key(100 + seed + i), len(samples)))
            for i in (0, 1)
        )
        for out, x in ((own, np.asarray(samples)), (floor, other)):
            found = evaluation.sliced_wasserstein(x, exact, projections=64)
            out.append(found.value)
    return float(np.mean(own)), float(np.mean(floor))


def report(
    name: str,
    sample: Callable[[Array, int], Array],
    numbers: tuple[int, ...] = (1, 2, 4),
) -> dict[int, float]:
    """Prints and returns the distance at numbers of steps."""
    found, eps = {}, jax.random.normal(jax.random.key(3), (8192, 2))
    for steps in numbers:
        own, floor = judged(sample(eps, steps))
        found[steps] = own
        print(f"{name}: {steps} step(s), distance {own:.4f}, floor {floor:.4f}")
    print(f"{time.process_time():.0f} s of CPU")
    return found
