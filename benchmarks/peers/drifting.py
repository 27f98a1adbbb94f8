"""Drifting's generator update against ours (lambertae/drifting, JAX).

    git clone https://github.com/lambertae/drifting FOLDER
    git -C FOLDER checkout accd0cf09c33b70892d33941d2a287ca86cb92e1
    python -m benchmarks.peers.drifting --peer=FOLDER

Its loss (`drift_loss`) and generator (`DitGen` with the options of its latent recipe,
in float32, as wide and deep as a DiT-S) are called as they are. Its training script
needs a data set and an encoder, so that the update around them stands here as it stands
there, and a feature is what a patch of the latent holds: two labels with four samples,
eight positives and four negatives each; gradient, clipping, adamw, EMA. The catalogue
does not have the method. What comes next to it is a regression on the same latents: one
forward pass and one gradient of our DiT. Seconds are therefore compared for an
operation of matrix products, and temporaries for an operation of a forward pass.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.measure import Result, Scale
from benchmarks.peers import side
from benchmarks.peers.side import Peer, Side
from distilljax.methods import flow_matching

PEER = Peer(
    "lambertae/drifting",
    "accd0cf09c33b70892d33941d2a287ca86cb92e1",
    "drift_loss.py",
    "drifting",
)
LABELS, SAMPLES, POSITIVES, NEGATIVES = 2, 4, 8, 4
# The latent recipes' options of the generator, beside its size and its bfloat16.
OPTIONS = {
    "use_qknorm": True,
    "use_swiglu": True,
    "use_rope": True,
    "use_rmsnorm": True,
    "n_cls_tokens": 16,
    "noise_classes": 64,
    "noise_coords": 32,
}


class State(NamedTuple):
    """What the official update changes."""

    params: Any
    opt: Any
    ema: Any
    step: jax.Array


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """In place of what the files import for meshes, downloads and unused functions."""

    def draw(shard: str, rand_type: str) -> Any:
        return getattr(jax.random, rand_type)

    contents = {
        "utils": {},
        "utils.hsdp_util": {"enforce_ddp": lambda x: x},
        "utils.misc": {"ddp_rand_func": draw},
        "utils.env": {"HF_REPO_ID": "", "HF_ROOT": ""},
        "einops": {"repeat": None},
    }
    before = {name: sys.modules.get(name) for name in contents}
    for name, members in contents.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def features(x: jax.Array, patch: int) -> jax.Array:
    """What the patches hold, each a feature: ``[labels * patches, samples, values]``.

    Args:
      x: latents ``[labels, samples, H, W, C]``.
      patch: side of a patch.
    """
    (labels, samples), (rows, columns, channels) = x.shape[:2], x.shape[2:]
    grid = (rows // patch, patch, columns // patch, patch)
    x = x.reshape(labels, samples, *grid, channels).transpose(0, 2, 4, 1, 3, 5, 6)
    return x.reshape(-1, samples, patch * patch * channels)


def official(folder: str | None, patch: int) -> Side:
    """The official update on a generator as wide and deep as DiT-S."""
    with side.importable(PEER.folder(folder)), stand_ins():
        import drift_loss as code
        from models import generator
    side.older(code)
    channels = side.SHAPE[-1]
    model = generator.DitGen(
        cond_dim=384,
        num_classes=side.CLASSES + 1,
        input_size=side.SHAPE[0],
        in_channels=channels,
        out_channels=channels,
        patch_size=patch,
        hidden_size=384,
        depth=12,
        num_heads=6,
        **OPTIONS,
    )
    labels = jnp.repeat(side.data(batch=LABELS)["cond"], SAMPLES)
    held = side.data(batch=LABELS * (POSITIVES + NEGATIVES))["x0"]
    held = features(held.reshape(LABELS, -1, *side.SHAPE), 4)
    positives, negatives = held[:, :POSITIVES], held[:, POSITIVES:]
    scale = jnp.repeat(jnp.asarray([1.5, 3.0]), SAMPLES)

    def generate(params: Any, key: jax.Array) -> jax.Array:
        found = model.apply(
            {"params": params}, labels, scale, train=True, rngs={"noise": key}
        )
        return found["samples"]

    def loss(params: Any, key: jax.Array) -> jax.Array:
        samples = generate(params, key).reshape(LABELS, SAMPLES, *side.SHAPE)
        found, _ = code.drift_loss(
            gen=features(samples, 4), fixed_pos=positives, fixed_neg=negatives
        )
        return jnp.mean(found)

    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    params = side.random_like(jax.eval_shape(model.init, keys, labels)["params"])
    optimizer = optax.chain(
        optax.clip_by_global_norm(2.0), optax.adamw(2e-4, b2=0.95, weight_decay=0.01)
    )

    def step(state: State, key: jax.Array) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(key, state.step)
        value, grads = jax.value_and_grad(loss)(state.params, key)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        new = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, state.ema, new)
        return State(new, opt, ema, state.step + 1), value

    ema = jax.tree.map(jnp.copy, params)
    first = State(params, optimizer.init(params), ema, jnp.zeros((), jnp.int32))
    return side.side(
        jax.jit(step, donate_argnums=0),
        lambda state: generate(state.params, jax.random.key(2)),
        first,
        jax.random.key(1),
    )


def ours(patch: int, scale: Scale) -> Side:
    """One forward pass and one gradient of our DiT-S."""
    network = side.dit_s(patch, scale, second_time=False)
    return side.ours(
        flow_matching(),
        network,
        optimizer="adamw",
        betas=(0.9, 0.95),
        weight_decay=0.01,
        clip=2.0,
        ema=0.999,
    )


def run(scale: Scale, folder: str | None = None) -> list[Result]:
    """All results of this file."""
    theirs = official(folder, 4)
    return side.compare(
        "Drifting S/4",
        ours(4, scale),
        theirs,
        scale,
        forwards=3.0,
        seconds=(1.1, 0.9),
        memory=(1.0, 0.8),
        alike=False,
    )


if __name__ == "__main__":
    sys.exit(side.main(run, "drifting", __doc__))
