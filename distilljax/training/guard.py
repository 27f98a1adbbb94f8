"""The guard: an update that is not finite changes nothing.

What is decided on is the norm of the gradient and every number that the update would
write, parameters and optimizer state, so that a leaf without gradient that an optimizer
turns into NaN is seen as well. The update is computed twice, once inside a reduction
that keeps none of it and once, in a branch, into the arrays that it replaces: that is
cheaper than to keep new and old arrays until both can be compared, and needs no memory.
The first of the two is left out where the optimizer is known to make finite numbers of
what it is given, see `optimizers.Bounded`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distilljax.training.optimizers import BOUND, Bounded
from distilljax.training.state import leaves

Array = jax.Array
Step = Callable[[Any, Any, Any, Array], tuple[Any, Any]]


def norm_of(grads: Any) -> Array:
    """Global norm of a gradient, in float32 at least."""
    return optax.tree.norm(
        jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads)
    )


def no_worse(new: Any, old: Any) -> Array:
    """Whether numbers of a tree are finite where those before were."""
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    fine = [
        jnp.all(jnp.isfinite(x) | ~jnp.isfinite(y))
        for x, y in pairs
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.array(fine, bool))


def kept(fine: Array, new: Any, old: Any) -> Any:
    """The new tree if all went well, else the old one."""
    return jax.tree.map(lambda x, y: jnp.where(fine, x, y), new, old)


def _finite(params: Any, opt: Any) -> Array:
    """Whether all numbers are finite, in one reduction for a parameter and its mirrors.

    A reduction each would compute the moments of a leaf once for every one of them.
    """
    groups = {path: [leaf] for path, leaf in leaves(params).items()}
    own = list(groups)
    for path, leaf in leaves(opt).items():
        mirrored = (
            name
            for name in own
            if path.endswith(name) and groups[name][0].shape == leaf.shape
        )
        groups.setdefault(next(mirrored, f"opt/{path}"), []).append(leaf)
    found = []
    for group in groups.values():
        group = [x for x in group if jnp.issubdtype(x.dtype, jnp.inexact)]
        if group:
            fine = jnp.isfinite(group[0])
            for leaf in group[1:]:
                fine &= jnp.isfinite(leaf)
            found.append(jnp.all(fine))
    return jnp.all(jnp.array(found, bool))


def certain(
    optimizer: optax.GradientTransformation, norm: Array, *trees: Any
) -> Array | None:
    """Whether an update is known to be finite before it is computed; None if never.

    Args:
      optimizer: that makes it.
      norm: of the gradient.
      *trees: gradient, parameters and optimizer state.
    """
    wide = all(
        jnp.finfo(leaf.dtype).bits >= 32
        for leaf in jax.tree.leaves(trees)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    )
    return norm <= BOUND if wide and isinstance(optimizer, Bounded) else None


def guarded(
    step: Step,
    grads: Any,
    params: Any,
    opt: Any,
    factor: Array,
    sound: Array,
    sure: Array | None = None,
) -> tuple[Any, Any, Array]:
    """One optimizer step where everything in it is finite, else nothing.

    Args:
      step: ``(grads, opt, params, factor) -> (params, opt)``, a pure function.
      grads: the gradient.
      params: parameters before.
      opt: optimizer state before.
      factor: of the gradient (clipping), a scalar. It is applied inside, so that no
        scaled gradient is kept.
      sound: whether the update may happen otherwise.
      sure: whether it is known to be finite, see `certain`; None if it never is.

    Returns:
      ``(params, opt, whether they are new)``.
    """

    def taken(grads, opt, params, factor):
        new = step(grads, opt, params, factor)
        # A narrow leaf whose gradient was added up in float32 stays narrow.
        return jax.tree.map(lambda x, y: x.astype(y.dtype), new, (params, opt))

    def checked(grads, opt, params, factor):
        return _finite(*taken(grads, opt, params, factor))

    given = (grads, opt, params, factor)
    if sure is None:
        fine = sound & checked(*given)
    else:
        fine = sound & jax.lax.cond(sure, lambda *_: True, checked, *given)
    params, opt = jax.lax.cond(
        fine,
        taken,
        # Donated arrays pass through; where would hold and copy old and new ones.
        lambda grads, opt, params, factor: (params, opt),
        *given,
    )
    return params, opt, fine
