"""Trains the classifier behind `digits_classifier` and writes its weights.

``python -m distilljax.evaluation.features.train_digits`` replaces the weights that ship
with the library and says how well they recognise digits they have not seen.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from distilljax.data import digits
from distilljax.evaluation.features.digits import SHAPES, WEIGHTS, apply

# Every fifth digit is held out of the training.
HELD_OUT = 5


def _init(seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in SHAPES.items():
        scale = np.sqrt(2.0 / np.prod(shape[:-1]))
        out[f"{name}.kernel"] = (scale * rng.normal(size=shape)).astype(np.float32)
        out[f"{name}.bias"] = np.zeros(shape[-1], np.float32)
    return out


def held_out(count: int) -> NDArray[np.bool_]:
    """Which of the first `count` digits the training does not see."""
    return np.arange(count) % HELD_OUT == 0


def train(
    steps: int = 3000, *, batch_size: int = 256, lr: float = 2e-3, seed: int = 0
) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Trains the classifier on four fifths of the digits.

    Args:
      steps: updates of Adam on a cosine schedule.
      batch_size: digits an update, each shifted by up to one pixel and given noise of
        standard deviation 0.1.
      lr: largest learning rate.
      seed: of weights, batches, shifts and noise.

    Returns:
      The weights, and the share of the other fifth that they recognise.
    """
    source = digits()
    images, labels = source.columns["x0"], source.columns["cond"]
    held = held_out(len(images))
    x, y = jnp.asarray(images[~held]), jnp.asarray(labels[~held])
    optimizer = optax.adamw(optax.cosine_decay_schedule(lr, steps), weight_decay=1e-3)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = apply(params, x).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def update(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        a, b, c = jax.random.split(key, 3)
        rows = jax.random.randint(a, (batch_size,), 0, len(x))
        shifts = jax.random.randint(b, (batch_size, 2), 0, 3)
        moved = jax.vmap(_shift)(x[rows], shifts)
        noisy = moved + 0.1 * jax.random.normal(c, moved.shape)
        grads = jax.grad(loss)(params, noisy, y[rows])
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params: Any = jax.tree.map(jnp.asarray, _init(seed))
    state = optimizer.init(params)
    for step in range(steps):
        params, state = update(
            params, state, jax.random.fold_in(jax.random.key(seed), step)
        )
    found = apply(params, jnp.asarray(images[held])).logits.argmax(1)
    accuracy = float((found == labels[held]).mean())
    return jax.tree.map(np.asarray, params), accuracy


def _shift(image: jax.Array, by: jax.Array) -> jax.Array:
    """Moves an image by ``by - 1`` pixels; what enters is background."""
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    return jax.lax.dynamic_slice(padded, (by[0], by[1], 0), image.shape)


def main() -> None:
    """Trains and writes the weights."""
    parser = argparse.ArgumentParser(description="Trains the digits classifier.")
    parser.add_argument("--out", type=pathlib.Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    params, accuracy = train(options.steps, seed=options.seed)
    np.savez_compressed(options.out, allow_pickle=False, **params)
    size = options.out.stat().st_size / 1000
    print(f"held-out accuracy {accuracy:.4f}; {options.out} ({size:.0f} kB)")


if __name__ == "__main__":
    main()
