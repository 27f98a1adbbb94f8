"""The guarded optimizer update against one that keeps old and new arrays.

Both clip by the global norm and change nothing if the update is not finite. One is the
trainer's (`distilljax.training.guard`), which looks at every number that it would
write; the other looks at the gradient alone and chooses between old and new arrays with
``where``, as one would write it. AdamW on the parameters of a DiT-S, state donated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import measure
from benchmarks.measure import Result, Scale
from distilljax import networks
from distilljax.training.guard import guarded, norm_of

STEPS = 4
CLIP = 1.0
LIMIT, GOAL = 0.75, 0.5
MEMORY = 1.2


def updates(optimizer: optax.GradientTransformation) -> tuple[Callable, Callable]:
    """``(params, opt, grads) -> (params, opt)``: the trainer's, and with ``where``."""

    def step(grads, opt, params, factor):
        grads = jax.tree.map(lambda g: factor * g, grads)
        found, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, found), opt

    def clipping(grads):
        norm = norm_of(grads)
        return norm, jnp.minimum(1.0, CLIP / jnp.maximum(norm, 1e-12))

    def ours(params, opt, grads):
        norm, factor = clipping(grads)
        return guarded(step, grads, params, opt, factor, jnp.isfinite(norm))[:2]

    def chosen(params, opt, grads):
        norm, factor = clipping(grads)
        fine = jnp.isfinite(norm)
        new = step(grads, opt, params, factor)
        return jax.tree.map(lambda x, y: jnp.where(fine, x, y), new, (params, opt))

    return ours, chosen


class Run:
    """One of them; call it for the seconds of a block."""

    def __init__(self, update: Callable, optimizer: Any, params: Any, steps: int):
        self.grads = jax.tree.map(lambda p: 1e-3 * jnp.ones_like(p), params)
        self.state = (jax.tree.map(jnp.copy, params), optimizer.init(params))
        self.steps = steps
        program = jax.jit(update, donate_argnums=(0, 1))
        self.step = program.lower(*self.state, self.grads).compile()
        self.temporaries = self.step.memory_analysis().temp_size_in_bytes

    def __call__(self) -> float:
        """Seconds of the next block."""
        began = time.perf_counter()
        for _ in range(self.steps):
            self.state = self.step(*self.state, self.grads)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


def run(scale: Scale) -> list[Result]:
    """All results of this file."""
    size = {"width": 32, "depth": 1, "heads": 2} if scale.tiny else {"size": "S"}
    network = networks.dit((32, 32, 4), num_classes=10, **size)
    params = jax.jit(network.init)(jax.random.key(0))
    optimizer, steps = optax.adamw(1e-4), scale.steps(STEPS)
    ours, other = (Run(u, optimizer, params, steps) for u in updates(optimizer))
    pairs = measure.interleaved(ours, other, scale.pairs)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    share = ours.temporaries / held
    return [
        measure.ratio(
            "guarded update",
            "the trainer's update over one that chooses with where",
            pairs,
            limit=LIMIT,
            goal=GOAL,
            steps=steps,
        ),
        {
            "name": "temporaries of the update",
            "what": "of the parameters; with where in temporaries_with_where",
            "value": share,
            "limit": MEMORY,
            "goal": MEMORY,
            "passed": share <= MEMORY,
            "temporaries_with_where": other.temporaries / held,
        },
    ]


if __name__ == "__main__":
    sys.exit(measure.main(run, "guarded_update", __doc__))
