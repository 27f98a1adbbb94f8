"""Attention that `jax.jvp` and `jax.vjp` can go through, also one through the other.

Consistency, MeanFlow and flow-map losses push a tangent through the whole network. The
fused attentions of the JAX ecosystem refuse it (they are `jax.custom_vjp`), so the
implementations here are plain JAX:

| implementation | scores in memory | for |
|---|---|---|
| `xla` | ``Nq Nk`` | up to about a thousand tokens |
| `chunked` | ``chunk Nk``, with recomputation in the backward pass | long sequences |

Both are exact and give the same values and derivatives to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax.runtime.errors import unknown

Array = jax.Array
AUTO_LIMIT = 1024


def _attend(q: Array, k: Array, v: Array, mask: Array | None, scale: float) -> Array:
    """``softmax(scale q k^T) v``; scores and softmax in at least float32."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
    scores = scores * scale
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    # A row without any key has no softmax; its result is 0 and so is its derivative.
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    weights = jnp.exp(scores - top)
    # Divided after the product, so that of all arrays of the size of the scores the
    # backward pass keeps one.
    total = jnp.moveaxis(jnp.sum(weights, axis=-1, keepdims=True), 1, 2)
    out = jnp.einsum(
        "bhqk,bkhd->bqhd", weights.astype(v.dtype), v, preferred_element_type=wide
    )
    return (out / jnp.where(total == 0.0, 1.0, total)).astype(q.dtype)


def _xla(
    q: Array, k: Array, v: Array, mask: Array | None, scale: float, chunk: int
) -> Array:
    return _attend(q, k, v, mask, scale)


def _chunked(
    q: Array, k: Array, v: Array, mask: Array | None, scale: float, chunk: int
) -> Array:
    """Queries a chunk at a time; the backward pass computes a chunk's scores again."""
    batch, length, heads, size = q.shape
    count = -(-length // chunk)
    if count == 1:
        return _attend(q, k, v, mask, scale)
    spare = count * chunk - length
    q = jnp.pad(q, ((0, 0), (0, spare), (0, 0), (0, 0)))
    q = jnp.moveaxis(q.reshape(batch, count, chunk, heads, size), 1, 0)
    per_query = mask is not None and mask.shape[2] > 1
    if mask is not None and per_query:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, spare), (0, 0)), mode="edge")
        mask = mask.reshape(*mask.shape[:2], count, chunk, mask.shape[-1])
        mask = jnp.moveaxis(mask, 2, 0)

    @jax.checkpoint
    def one(rows):
        queries, visible = rows if per_query else (rows, mask)
        return _attend(queries, k, v, visible, scale)

    out = jax.lax.map(one, (q, mask) if per_query else q)
    out = jnp.moveaxis(out, 0, 1).reshape(batch, count * chunk, heads, v.shape[-1])
    return out[:, :length]


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"xla": _xla, "chunked": _chunked}


def _check(q: Array, k: Array, v: Array, mask: Array | None, chunk: int) -> None:
    fits = q.ndim == k.ndim == v.ndim == 4
    fits = fits and k.shape[:3] == v.shape[:3] and q.shape[0] == k.shape[0]
    fits = fits and q.shape[3] == k.shape[3] and q.shape[2] % max(k.shape[2], 1) == 0
    if not fits:
        raise ValueError(
            "attention wants q [B, Nq, H, D], k [B, Nk, G, D] and v [B, Nk, G, Dv], G "
            f"a divisor of H; got {q.shape}, {k.shape} and {v.shape}"
        )
    wanted = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    if mask is not None and (
        mask.ndim != 4
        or any(m not in (1, w) for m, w in zip(mask.shape, wanted, strict=True))
        or mask.dtype != jnp.bool_
    ):
        raise ValueError(
            f"mask must be boolean [B|1, H|1, Nq|1, Nk|1] of {wanted}, got "
            f"{mask.dtype} {mask.shape}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    scale: float | None = None,
    implementation: str = "auto",
    chunk: int = 256,
) -> Array:
    """Scaled dot-product attention, ``softmax(scale q k^T) v`` per head.

    Args:
      q: queries ``[B, Nq, H, D]``, any ``D``.
      k: keys ``[B, Nk, G, D]``; ``G`` divides ``H`` (grouped-query attention).
      v: values ``[B, Nk, G, Dv]``.
      mask: boolean, True where a query sees a key; ``[B, H, Nq, Nk]`` or 1 along any
        axis. A query that sees no key gives 0.
      scale: factor of the scores; default ``D ** -0.5``.
      implementation: ``xla``, ``chunked``, or ``auto``: chunked above 1024 queries or
        keys.
      chunk: queries a time of the chunked one.

    Returns:
      ``[B, Nq, H, Dv]`` in the dtype of ``q``.

    Raises:
      ValueError: on shapes that do not fit, a mask that is not boolean, an unknown
        implementation.

    Gradient flow: forward and reverse mode in q, k and v to any order, under jit, vmap,
    scan and remat.

    Numerics: scores and softmax in at least float32; the weights enter the second
    product in the dtype of ``v`` and are summed in float32.
    """
    _check(q, k, v, mask, chunk)
    if implementation == "auto":
        longest = max(q.shape[1], k.shape[1])
        implementation = "chunked" if longest > AUTO_LIMIT else "xla"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            unknown("implementation", implementation, ["auto", *IMPLEMENTATIONS])
        )
    if k.shape[2] != q.shape[2]:
        groups = q.shape[2] // k.shape[2]
        k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    return IMPLEMENTATIONS[implementation](q, k, v, mask, scale, chunk)
