"""Improved MeanFlow's update against the official code (Lyy-iiis/imeanflow, JAX).

    git clone https://github.com/Lyy-iiis/imeanflow FOLDER
    git -C FOLDER checkout bf60cd7cb653f6628e59d48034b333c5eba445e2
    python -m benchmarks.peers.imf --peer=FOLDER

Its loss and network are called as they are (`iMeanFlow.forward`), with the network as
wide and deep as a DiT-S: 4 blocks, and 8 more for each of its two heads. The update
around them stands here as its training script has it: gradient, adamw without decay,
EMA. The catalogue does not have the method. What comes next to it is `mean_flow` on
data with guidance in its own velocity, on our DiT: a conditional and a null evaluation,
a jvp and a gradient, where the official code has three evaluations of one head, a jvp
of the other and a gradient of both. Seconds are therefore compared for an operation of
matrix products, and temporaries for an operation of a forward pass.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.measure import Result, Scale
from benchmarks.peers import side
from benchmarks.peers.side import Peer, Side
from distilljax.diffusion.times import LogitNormal, Pair
from distilljax.methods import mean_flow

PEER = Peer(
    "Lyy-iiis/imeanflow",
    "bf60cd7cb653f6628e59d48034b333c5eba445e2",
    "imf.py",
    "imf",
)

# The 4.03 products of `mean_flow` without guidance, and two evaluations more.
FORWARDS = 6.03


class State(NamedTuple):
    """What the official update changes."""

    params: Any
    opt: Any
    ema: Any
    step: jax.Array


def official(folder: str | None, patch: int) -> Side:
    """The official update on a DiT as wide and deep as S."""
    with side.importable(PEER.folder(folder)):
        import imf as code
    code.imfDiT.imfDiT_S = functools.partial(
        code.imfDiT.imfDiT,
        depth=12,
        hidden_size=384,
        patch_size=patch,
        num_heads=6,
        aux_head_depth=8,
    )
    model = code.iMeanFlow(model_str="imfDiT_S")
    batch = side.data()
    ones, label = jnp.ones((1,)), jnp.zeros((1,), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch["x0"][:1], ones, label)
    params = side.random_like(shapes["params"])
    optimizer = optax.adamw(1e-4, weight_decay=0.0, b2=0.95)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        return model.apply(
            {"params": params},
            images=batch["x0"],
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

    def forward(state: State) -> tuple[jax.Array, jax.Array]:
        t = jnp.full((side.BATCH,), 0.5)
        args = (batch["x0"], t, 0.5 * t, 2.0 + t, 0.0 * t, t, batch["cond"])
        return model.apply(
            {"params": state.params}, method=lambda module: module.net(*args)
        )

    ema = jax.tree.map(jnp.copy, params)
    first = State(params, optimizer.init(params), ema, jnp.zeros((), jnp.int32))
    return side.side(jax.jit(step, donate_argnums=0), forward, first, jax.random.key(1))


def ours(patch: int, scale: Scale) -> Side:
    """`mean_flow` with its own velocity of guidance scale 2, half on the diagonal."""
    law = Pair(law=LogitNormal(-0.4, 1.0), diagonal=0.5)
    method = mean_flow(law=law, teacher=False, kappa=0.5, label_dropout=0.1)
    network = side.dit_s(patch, scale, second_time=True)
    return side.ours(method, network, optimizer="adam", betas=(0.9, 0.95), ema=0.9999)


def run(scale: Scale, folder: str | None = None) -> list[Result]:
    """All results of this file."""
    theirs = official(folder, 4)
    return side.compare(
        "iMF S/4",
        ours(4, scale),
        theirs,
        scale,
        forwards=FORWARDS,
        seconds=(1.1, 0.9),
        memory=(1.0, 0.8),
        alike=False,
    )


if __name__ == "__main__":
    sys.exit(side.main(run, "imf", __doc__))
