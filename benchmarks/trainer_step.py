"""Trainer step against a hand-written jitted update of the same loss and network.

The trainer is `distilljax.training.train` itself: input pipeline, guarded update,
evaluation EMA, metrics read one cycle late, records on disk. Against it stands what one
would write without the library: the loss in plain jax, one jitted and donated update
with the same optimizer, clipping, EMA and guard, on one constant batch, its loss never
read.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks import measure, workload
from benchmarks.measure import Result, Scale

Array = jax.Array
sg = jax.lax.stop_gradient
STEPS = 20
LIMIT, GOAL = 1.05, 1.03


class State(NamedTuple):
    """What the hand-written update changes."""

    params: Any
    opt: Any
    ema: Any
    skipped: Array
    step: Array


def column(t: Array, x: Array) -> Array:
    return t.reshape(t.shape + (1,) * (x.ndim - 1))


def draw_flow_matching(key: Array, x0: Array) -> tuple[Array, Array]:
    """``(t, eps)``: 70 % logit-normal and 30 % uniform times."""
    pick, normal, uniform, noise = jax.random.split(key, 4)
    shape = x0.shape[:1]
    t = jnp.where(
        jax.random.uniform(pick, shape) < 0.7,
        jax.nn.sigmoid(jax.random.normal(normal, shape)),
        jax.random.uniform(uniform, shape),
    )
    return t, jax.random.normal(noise, x0.shape)


def flow_matching(apply, params, teacher, x0, cond, t, eps, step) -> Array:
    """``|v(x_t, t) - (eps - x0)|^2 / 2`` on the linear path."""
    tc = column(t, x0)
    v = apply(params, (1.0 - tc) * x0 + tc * eps, t, cond)
    return 0.5 * jnp.mean((v - (eps - x0)) ** 2)


def draw_scm(key: Array, x0: Array) -> tuple[Array, Array]:
    """``(t, eps)`` with ``log tan t ~ N(-0.4, 1.4^2)``."""
    times, noise = jax.random.split(key)
    t = jnp.arctan(jnp.exp(-0.4 + 1.4 * jax.random.normal(times, x0.shape[:1])))
    return t, jax.random.normal(noise, x0.shape)


def scm(apply, params, teacher, x0, cond, t, eps, step) -> Array:
    """sCM (arXiv:2410.11081, eq. 8), tangent warm-up over 200 steps.

    A velocity network ``u`` of the linear path is on TrigFlow
    ``F = ((cos t - sin t) x + u(x / (cos t + sin t), t')) / (cos t + sin t)`` with
    ``t' = sin t / (cos t + sin t)``.
    """

    def velocity(weights, x, t):
        c, s = jnp.cos(t), jnp.sin(t)
        total = column(c + s, x)
        u = apply(weights, x / total, s / (c + s), cond)
        return (column(c - s, x) * x + u) / total

    c, s = jnp.cos(t), jnp.sin(t)
    cc, sc = column(c, x0), column(s, x0)
    x_t = cc * x0 + sc * eps
    v = sg(velocity(teacher, x_t, t))
    warmup = jnp.clip(step / 200.0, 0.0, 1.0)
    out, carried = jax.jvp(
        lambda x, u: velocity(params, x, u), (x_t, t), (-cc * sc * v, -c * s)
    )
    move = sg(cc**2 * (v - out) + warmup * (carried - cc * sc * x_t))
    good = jnp.all(jnp.isfinite(move), axis=tuple(range(1, x0.ndim)), keepdims=True)
    return 0.5 * jnp.mean(jnp.where(good, move + (sg(out) - out), 0.0) ** 2)


def update(
    loss: Callable,
    draw: Callable,
    optimizer: optax.GradientTransformation,
    *,
    clip: float,
    decay: float,
) -> Callable:
    """``(state, teacher, x0, cond, key) -> (state, {loss, norm})``, donated."""

    def one(state: State, teacher, x0, cond, key):
        t, eps = draw(jax.random.fold_in(key, state.step), x0)
        value, grads = jax.value_and_grad(loss)(
            state.params, teacher, x0, cond, t, eps, state.step
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        factor = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
        grads = jax.tree.map(lambda g: factor * g, grads)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt),
            (state.params, state.opt),
        )
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.ema, params)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        new = State(params, opt, ema, skipped, state.step + 1)
        return new, {"loss": value, "norm": norm}

    return jax.jit(one, donate_argnums=0)


def adamw(work: workload.Work) -> optax.GradientTransformation:
    """AdamW with the card's learning rate: linear warm-up, then a cosine."""
    role, cycles = work.config.role("student"), work.config.cycles
    warm = role.schedule.warmup

    def rate(count):
        share = jnp.clip((count - warm) / (cycles - warm), 0.0, 1.0)
        rise = jnp.minimum((count + 1.0) / warm, 1.0)
        return role.lr * rise * 0.5 * (1.0 + jnp.cos(jnp.pi * share))

    return optax.adamw(rate, *role.betas, eps=role.eps, weight_decay=role.weight_decay)


class Handwritten:
    """The hand-written run; call it for the seconds of a block."""

    def __init__(self, work: workload.Work, params, loss, draw, steps: int):
        role = work.config.role("student")
        network = work.networks["backbone"]
        optimizer = adamw(work)

        def bound(*args):
            return loss(network.apply, *args)

        self.step = update(bound, draw, optimizer, clip=role.clip, decay=role.ema)
        copy = jax.tree.map(jnp.copy, (params, params))
        zero = jnp.zeros((), jnp.int32)
        self.state = State(copy[0], optimizer.init(params), copy[1], zero, zero + 0)
        self.teacher = work.params.get("teacher", {})
        batch = workload.first_batch(work)
        self.batch = {name: value[0, 0] for name, value in batch.items()}
        self.key, self.steps = jax.random.key(0), steps

    def __call__(self) -> float:
        """Seconds of the next block."""
        began = time.perf_counter()
        for _ in range(self.steps):
            self.state, _ = self.step(
                self.state, self.teacher, self.batch["x0"], self.batch["cond"], self.key
            )
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


CASES = {
    "flow_matching": ("teacher", flow_matching, draw_flow_matching),
    "scm": ("scm", scm, draw_scm),
}


def compare(method: str, scale: Scale) -> list[Result]:
    """Ratio of a method, and the number of compilations of its run."""
    card, loss, draw = CASES[method]
    steps = scale.steps(STEPS)
    work = workload.card(card, scale)
    params = workload.filled(work.networks["backbone"])
    hand = Handwritten(work, params, loss, draw, steps)
    hand()
    with (
        measure.compilations() as programs,
        workload.Trainer(work, steps) as trainer,
    ):
        trainer()
        first = len(programs)
        pairs = measure.interleaved(trainer, hand, scale.pairs)
    cycles = [name for name in programs if "cycle" in name]
    return [
        measure.ratio(
            f"trainer step, {method}",
            "train over a hand-written update",
            pairs,
            limit=LIMIT,
            goal=GOAL,
            steps=steps,
        ),
        measure.fact(
            f"compilations of a cycle, {method}",
            "programs named after a cycle in a whole run",
            len(cycles),
            1,
            programs=programs,
            after_the_first_block=len(programs) - first,
        ),
    ]


def run(scale: Scale) -> list[Result]:
    """All results of this file."""
    return [result for method in CASES for result in compare(method, scale)]


if __name__ == "__main__":
    sys.exit(measure.main(run, "trainer_step", __doc__))
