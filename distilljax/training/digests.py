"""Fingerprints of arrays, and which of them are not finite.

Arrays in a CPU's memory are read where they are, which compiles nothing; those of an
accelerator, and what is spread over processes, in one program for a whole tree.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.training.state import leaves

_STRIDE, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
# Words that are hashed together on the host: they stay in its cache.
_BLOCK = 1 << 16


def fingerprint(tree: Any) -> int:
    """A number that changes when a leaf does."""
    total = 0
    for value, _ in _digests(jax.tree.leaves(tree), hashed=True):
        total = (total * 31 + int(value)) % 2**32
    return total


def not_finite(tree: Any) -> list[str]:
    """Paths of the leaves that are not finite."""
    named = leaves(tree)
    found = _digests(list(named.values()), hashed=False)
    return [name for name, (_, fine) in zip(named, found, strict=True) if not fine]


def _digests(flat: list[Any], hashed: bool) -> list[tuple[Any, Any]]:
    """A sum, if it is asked for, and whether it is finite, of every leaf."""
    far = {str(i): leaf for i, leaf in enumerate(flat) if not _near(leaf)}
    # Both are computed whatever is asked for, so that one program serves both.
    seen = jax.device_get(_program(far)) if far else {}
    return [
        seen[str(i)] if str(i) in seen else _on_host(leaf, i, hashed)
        for i, leaf in enumerate(flat)
    ]


def _near(leaf: Any) -> bool:
    """Whether this process can read a leaf without a copy."""
    if not isinstance(leaf, jax.Array):
        return True
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return False
    return all(device.platform == "cpu" for device in leaf.devices())


@jax.jit
def _program(far: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {i: (_hashed(leaf, int(i)), _finite(leaf)) for i, leaf in far.items()}


def _finite(leaf: jax.Array) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.asarray(True)
    return jnp.isfinite(leaf).all()


def _hashed(leaf: jax.Array, index: int) -> jax.Array:
    """Sum of the leaf's words, each hashed with its place (murmur3's finalizer)."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = 8 * min(leaf.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(leaf, f"uint{width}").reshape(-1)
    place = jnp.arange(words.size, dtype=jnp.uint32) * jnp.uint32(_STRIDE)
    mixed = _mixed(words.astype(jnp.uint32), place + jnp.uint32(index))
    return jnp.sum(mixed, dtype=jnp.uint32)


def _mixed(words: Any, place: Any) -> Any:
    """Words, each hashed with its place; arrays of jax or numpy."""
    mixed = (words ^ place) * np.uint32(_FIRST)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(_SECOND)
    return mixed ^ (mixed >> np.uint32(16))


def _on_host(leaf: Any, index: int, hashed: bool) -> tuple[int, bool]:
    """What the program computes, in blocks."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    flat = np.ascontiguousarray(leaf).reshape(-1)
    fine = not jnp.issubdtype(flat.dtype, jnp.inexact)
    fine = fine or all(np.isfinite(part).all() for part in _blocks(flat))
    if not hashed:
        return 0, fine
    words = flat.view(f"u{min(flat.dtype.itemsize, 4)}")
    total, start = 0, 0
    for part in _blocks(words):
        place = np.arange(start, start + len(part), dtype=np.uint32)
        place = place * np.uint32(_STRIDE) + np.uint32(index)
        mixed = _mixed(part.astype(np.uint32), place)
        total, start = total + int(mixed.sum(dtype=np.uint64)), start + len(part)
    return total % 2**32, fine


def _blocks(flat: np.ndarray) -> Any:
    return (flat[i : i + _BLOCK] for i in range(0, len(flat), _BLOCK))
