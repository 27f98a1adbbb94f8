"""MeanFlow's update against the official code (Gsunshine/meanflow, JAX).

    git clone https://github.com/Gsunshine/meanflow FOLDER
    git -C FOLDER checkout d70cb55d298ee03c53bf6da67bec281082e4e2d9
    python -m benchmarks.peers.meanflow --peer=FOLDER

Its loss and network are called as they are (`MeanFlow.forward`, without guidance). Its
training script asks for packages that have nothing to do with the step, so that the
update around them stands here as it stands there: gradient, adamw without decay, EMA.
The official code draws a fixed share of a batch on the diagonal and takes the jvp of
all; ours is measured with a share that is drawn, and with a fixed one.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.measure import Result, Scale
from benchmarks.peers import side
from benchmarks.peers.side import Peer, Side
from distilljax.diffusion.times import Pair
from distilljax.methods import mean_flow

PEER = Peer(
    "Gsunshine/meanflow",
    "d70cb55d298ee03c53bf6da67bec281082e4e2d9",
    "meanflow.py",
    "meanflow",
)
# The official step needs 4.03 matrix products, with elementwise work 4.10 evaluations.
DRAWN, FIXED = 4.10, 3.35


class State(NamedTuple):
    """What the official update changes."""

    params: Any
    opt: Any
    ema: Any
    step: jax.Array


def official(folder: str | None, patch: int) -> Side:
    """The official update on a DiT-S."""
    with side.importable(PEER.folder(folder)):
        import meanflow as code
    side.older(code)
    model = code.MeanFlow(
        model_str=f"DiT_S_{patch}",
        model_config={},
        guidance_eq="",
        class_dropout_prob=0.0,
    )
    batch = side.data()
    ones, label = jnp.ones((1,)), jnp.zeros((1,), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch["x0"][:1], ones, label)
    params = side.random_like(shapes["params"])
    optimizer = optax.adamw(1e-4, weight_decay=0.0, b2=0.95)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        return model.apply(
            {"params": params},
            imgs=batch["x0"],
            labels=batch["cond"],
            rngs={"gen": key},
            method=model.forward,
        )[0]

    def step(state: State, key: jax.Array) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(key, state.step)
        value, grads = jax.value_and_grad(loss)(state.params, key)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        new = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda a, b: 0.9999 * a + 0.0001 * b, state.ema, new)
        return State(new, opt, ema, state.step + 1), value

    def forward(state: State) -> jax.Array:
        t = jnp.full((side.BATCH,), 0.5)

        def net(module: Any) -> jax.Array:
            return module.net(batch["x0"], t, 0.5 * t, batch["cond"])

        return model.apply({"params": state.params}, method=net)

    ema = jax.tree.map(jnp.copy, params)
    first = State(params, optimizer.init(params), ema, jnp.zeros((), jnp.int32))
    return side.side(jax.jit(step, donate_argnums=0), forward, first, jax.random.key(1))


def ours(patch: int, scale: Scale, law: Pair) -> Side:
    """Our cycle of the same: data in place of a teacher, no guidance."""
    method = mean_flow(law=law, teacher=False)
    network = side.dit_s(patch, scale, second_time=True)
    return side.ours(method, network, optimizer="adam", betas=(0.9, 0.95), ema=0.9999)


def run(scale: Scale, folder: str | None = None) -> list[Result]:
    """All results of this file."""
    results = []
    for patch in (4, 2):
        theirs = official(folder, patch)
        for law, most in ((Pair(), DRAWN), (Pair(fixed=True), FIXED)):
            name = f"mean_flow S/{patch}{', fixed share' if law.fixed else ''}"
            results += side.compare(
                name,
                ours(patch, scale, law),
                theirs,
                scale,
                forwards=most,
                seconds=(1.1, 0.9),
                memory=(1.0, 0.8),
            )
    return results


if __name__ == "__main__":
    sys.exit(side.main(run, "meanflow", __doc__))
