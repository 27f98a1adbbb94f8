"""A shortcut model's update against the official code (kvfrans/shortcut-models, JAX).

    git clone https://github.com/kvfrans/shortcut-models FOLDER
    git -C FOLDER checkout 601004348667094e1b71f30942199759412d4432
    python -m benchmarks.peers.shortcut --peer=FOLDER

Its targets (`get_targets`) and network are called as they are, in float32. Its training
script reads flags and datasets, so that the update around them stands here as it stands
there: gradient of the mean square, adamw, EMA of the target. An eighth of the rows
jumps on both sides.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.measure import Result, Scale
from benchmarks.peers import side
from benchmarks.peers.side import Peer, Side
from distilljax.methods import shortcut

PEER = Peer(
    "kvfrans/shortcut-models",
    "601004348667094e1b71f30942199759412d4432",
    "targets_shortcut.py",
    "shortcut",
)
OPTIONS = {
    "bootstrap_every": 8,
    "denoise_timesteps": 128,
    "bootstrap_dt_bias": 0,
    "bootstrap_ema": 1,
    "bootstrap_cfg": 0,
    "class_dropout_prob": 0.1,
    "num_classes": side.CLASSES,
}


class State(NamedTuple):
    """What the official update changes."""

    params: Any
    opt: Any
    ema: Any
    step: jax.Array


def official(folder: str | None, patch: int) -> Side:
    """The official update on a DiT-S."""
    with side.importable(PEER.folder(folder)):
        import model as code
        import targets_shortcut as targets
    # Its initialisers ask for a function that jax no longer has.
    code.core = types.SimpleNamespace(as_named_shape=lambda shape: shape)
    net = code.DiT(
        patch_size=patch,
        hidden_size=384,
        depth=12,
        num_heads=6,
        mlp_ratio=4,
        out_channels=side.SHAPE[-1],
        class_dropout_prob=OPTIONS["class_dropout_prob"],
        num_classes=side.CLASSES,
        dtype=jnp.float32,
    )
    batch, flags = side.data(), types.SimpleNamespace(batch_size=side.BATCH)
    flags.model = OPTIONS
    zeros, label = jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
    # It prints shapes whenever it is traced.
    with contextlib.redirect_stdout(io.StringIO()):
        shapes = jax.eval_shape(
            net.init, jax.random.key(0), batch["x0"][:1], zeros, zeros, label
        )
        params = side.random_like(shapes["params"])
        optimizer = optax.adamw(1e-4, weight_decay=0.1)

        def call(params: Any, *args: Any, **options: Any) -> jax.Array:
            return net.apply({"params": params}, *args, **options)

        def step(state: State, key: jax.Array) -> tuple[State, jax.Array]:
            key = jax.random.fold_in(key, state.step)
            models = types.SimpleNamespace(
                call_model=lambda *a, **k: call(state.params, *a, **k),
                call_model_ema=lambda *a, **k: call(state.ema, *a, **k),
            )
            x, v, t, length, labels, _ = targets.get_targets(
                flags, key, models, batch["x0"], batch["cond"]
            )

            def loss(params: Any) -> jax.Array:
                found = call(params, x, t, length, labels, train=True)
                return jnp.mean((found - v) ** 2)

            value, grads = jax.value_and_grad(loss)(state.params)
            updates, opt = optimizer.update(grads, state.opt, state.params)
            new = optax.apply_updates(state.params, updates)
            ema = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, state.ema, new)
            return State(new, opt, ema, state.step + 1), value

        def forward(state: State) -> jax.Array:
            t = jnp.full((side.BATCH,), 0.5)
            return call(state.params, batch["x0"], t, t, batch["cond"])

        ema = jax.tree.map(jnp.copy, params)
        first = State(params, optimizer.init(params), ema, jnp.zeros((), jnp.int32))
        jitted = jax.jit(step, donate_argnums=0)
        return side.side(jitted, forward, first, jax.random.key(1))


def ours(patch: int, scale: Scale) -> Side:
    """Our cycle of the same: data in place of a teacher."""
    method = shortcut(teacher=False, clip=4.0, label_dropout=0.1)
    network = side.dit_s(patch, scale, second_time=True)
    return side.ours(method, network, optimizer="adamw", weight_decay=0.1)


def run(scale: Scale, folder: str | None = None) -> list[Result]:
    """All results of this file."""
    results = []
    for patch in (4, 2):
        theirs = official(folder, patch)
        results += side.compare(
            f"shortcut S/{patch}",
            ours(patch, scale),
            theirs,
            scale,
            forwards=3.25,
            seconds=(1.1, 0.9),
            memory=(1.0, 0.8),
        )
    return results


if __name__ == "__main__":
    sys.exit(side.main(run, "shortcut", __doc__))
