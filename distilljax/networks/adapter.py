"""Modules as pure functions of their parameters.

The library sees a network as ``apply(params, x, t, cond, s)`` over plain nested dicts.
This file makes that out of a module of flax or equinox. nnx modules are built from a
constructor, so that nothing is allocated before ``init`` runs (under ``jit`` or
``eval_shape``), and merged with their parameters inside every call, which costs nothing
once traced.

Precision is settled here: parameters, state and condition are cast to the compute dtype
on the way in, times stay float32, results leave in float32.

Rules for modules: parameters are the only state (no random streams, no running
statistics), dropout keys are arguments of the call, no module is used in two places.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx, traverse_util
from flax.errors import InvalidRngError

from distilljax.core.binding import Condition, Network, Params, untold
from distilljax.diffusion.paths import Path
from distilljax.diffusion.predictions import Prediction
from distilljax.runtime import promotion
from distilljax.runtime.errors import unknown

Array = jax.Array
Constructor = Callable[[nnx.Rngs], nnx.Module]

TIME_CODES: Mapping[str, Callable[[Array, Array], Array]] = {
    "gap": lambda t, s: t - s,
    "end": lambda t, s: s,
}


class Pure(NamedTuple):
    """A module as two pure functions.

    Attributes:
      init: ``key -> params``, nested dicts with string keys.
      call: ``(params, *args, **kwargs)``, the module's own call.
      signature: of the module's call, without ``self``.
    """

    init: Callable[[Array], Params]
    call: Callable[..., Any]
    signature: inspect.Signature


def _text(path: tuple) -> tuple[str, ...]:
    return tuple(str(part) for part in path)


def _plain(state: nnx.State) -> Params:
    flat = {_text(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    return traverse_util.unflatten_dict(flat)


def _pure_nnx(module: Any, name: str) -> Pure:
    if isinstance(module, nnx.Module):
        given = module
    else:
        given = nnx.eval_shape(lambda: _built(module, jax.random.key(0), name))
    graph, state, rest = nnx.split(given, nnx.Param, ...)
    extra = ["/".join(_text(path)) for path, _ in nnx.to_flat_state(rest)]
    if extra:
        raise ValueError(
            f"network {name!r}: parameters must be the module's only state, got "
            f"{extra}; pass dropout keys at call time (nnx.Dropout(rate) without "
            "rngs) and use norms without running statistics"
        )
    layout = {_text(path): path for path, _ in nnx.to_flat_state(state)}
    values = _plain(state)

    def init(key: Array) -> Params:
        if isinstance(module, nnx.Module):
            return jax.tree.map(jnp.array, values)
        built = _built(module, key, name)
        return _plain(nnx.state(built, nnx.Param))

    def call(params: Params, *args: Any, **kwargs: Any) -> Any:
        flat = traverse_util.flatten_dict(params)
        if flat.keys() != layout.keys():
            _refuse(name, layout, flat)
        own = traverse_util.unflatten_dict({layout[k]: v for k, v in flat.items()})
        return nnx.merge(graph, own)(*args, **kwargs)

    return Pure(init, call, inspect.signature(given.__call__))


class _Stream(nnx.RngStream):
    """The keys of `nnx.RngStream`, counted by a number instead of an array.

    To write into an array of a trace, nnx asks it for its sharding, and jax looks
    through all that was traced before to say that it has none: the time of building a
    network would grow with the square of its layers.
    """

    drawn = 0

    def __call__(self) -> Array:
        key = jax.random.fold_in(self.key[...], self.drawn)
        self.drawn += 1
        return key


def _built(module: Constructor, key: Array, name: str) -> nnx.Module:
    rngs = nnx.Rngs(key)
    rngs.default = _Stream(key, tag="default")
    built = module(rngs)
    if not isinstance(built, nnx.Module) or not callable(built):
        raise ValueError(
            f"network {name!r}: the constructor must return an nnx.Module with a "
            f"__call__, got {type(built).__name__}; pass lambda rngs: "
            "MyModule(..., rngs=rngs)"
        )
    return built


def _refuse(name: str, wanted: Mapping, came: Mapping) -> None:
    missing = sorted("/".join(k) for k in wanted.keys() - came.keys())
    extra = sorted("/".join(map(str, k)) for k in came.keys() - wanted.keys())
    raise ValueError(
        f"network {name!r}: parameters do not fit the module: missing {missing}, not "
        f"its own {extra}; use parameters made by its init or saved from it"
    )


@contextlib.contextmanager
def _asked(name: str) -> Iterator[None]:
    """Says what to do where a linen module asks for random numbers.

    Raises:
      ValueError: naming the network.
    """
    try:
        yield
    except InvalidRngError as error:
        asked = str(error).split("(https")[0].strip(" .")
        raise ValueError(
            f"network {name!r}: {asked}: its module draws random numbers, and a "
            "network gets its key as rng=. Let __call__ take rng=None, write "
            "nn.Dropout(rate)(x, deterministic=rng is None, rng=rng), and list "
            "'dropout' among the capabilities; or build it with deterministic=True"
        ) from error


def _pure_linen(module: linen.Module, example: tuple | None, name: str) -> Pure:
    if example is None:
        raise ValueError(
            f"network {name!r}: a linen module needs example=(x, t, cond) arrays or "
            "ShapeDtypeStructs, from which its parameters get their shapes; got None"
        )

    def init(key: Array) -> Params:
        args = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), example)
        with _asked(name):
            variables = module.init(key, *args)
        if set(variables) - {"params"}:
            raise ValueError(
                f"network {name!r}: parameters must be the module's only state, got "
                f"collections {sorted(variables)}"
            )
        return variables["params"]

    def call(params: Params, *args: Any, **kwargs: Any) -> Any:
        with _asked(name):
            return module.apply({"params": params}, *args, **kwargs)

    return Pure(init, call, inspect.signature(module.__call__))


def _pure_tree(module: Any, name: str) -> Pure:
    """A callable pytree; its floating arrays are the parameters."""
    flat, structure = jax.tree_util.tree_flatten_with_path(module)
    leaves = [leaf for _, leaf in flat]
    layout = {}
    for place, (path, leaf) in enumerate(flat):
        array = isinstance(leaf, (jax.Array, np.ndarray))
        if array and jnp.issubdtype(leaf.dtype, jnp.inexact):
            keys = (jax.tree_util.keystr((part,), simple=True) for part in path)
            layout[tuple(keys)] = place

    def init(key: Array) -> Params:
        own = {keys: jnp.array(leaves[place]) for keys, place in layout.items()}
        return traverse_util.unflatten_dict(own)

    def call(params: Params, *args: Any, **kwargs: Any) -> Any:
        given = traverse_util.flatten_dict(params)
        if given.keys() != layout.keys():
            _refuse(name, layout, given)
        own = list(leaves)
        for keys, place in layout.items():
            own[place] = given[keys]
        return jax.tree.unflatten(structure, own)(*args, **kwargs)

    return Pure(init, call, inspect.signature(module.__call__))


def _is_tree(module: Any) -> bool:
    """Whether a module is a pytree of its own, as those of equinox are."""
    return callable(module) and not jax.tree_util.all_leaves([module])


def pure(module: Any, *, name: str = "module", example: tuple | None = None) -> Pure:
    """A module as ``init`` and ``call``; see the rules above.

    Args:
      module: a function ``nnx.Rngs -> nnx.Module`` (nothing is allocated before
        ``init``), a built nnx module (``init`` then returns copies of its parameters
        whatever the key), a linen module, or a built callable pytree such as an equinox
        module (likewise; its floating arrays are the parameters, nested by field).
      name: how errors call it.
      example: arguments of the call, arrays or shapes; linen only.

    Raises:
      ValueError: on anything else, or on a module with other state than parameters.
    """
    if isinstance(module, linen.Module):
        return _pure_linen(module, example, name)
    if not isinstance(module, nnx.Module) and _is_tree(module):
        return _pure_tree(module, name)
    if not callable(module):
        raise ValueError(
            f"network {name!r}: module must be a callable pytree (equinox), an nnx "
            "module, a function nnx.Rngs -> nnx.Module or a linen module, got "
            f"{type(module).__name__}"
        )
    return _pure_nnx(module, name)


def _check_signature(
    name: str, signature: inspect.Signature, keywords: set[str]
) -> None:
    try:
        signature.bind(None, None, None, **dict.fromkeys(keywords))
    except TypeError as error:
        wanted = ", ".join(["x", "t", "cond", *(f"{k}=" for k in sorted(keywords))])
        raise ValueError(
            f"network {name!r}: its module must be callable as module({wanted}), got "
            f"{signature} ({error}); change the signature, or claim fewer capabilities"
        ) from error


def cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves in another dtype; None and other leaves as they are."""
    if dtype is None:
        return tree

    def one(leaf: Array) -> Array:
        inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, dtype) if inexact else leaf

    return jax.tree.map(one, tree)


def widen(tree: Any) -> Any:
    """Floating leaves in at least float32."""

    def one(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(one, tree)


def times_over(x: Array, t: Any, clock: Callable[[Array], Array] | None) -> Array:
    """A time in the network's clock, at least float32, ``[B]`` if it was a scalar."""
    t = jnp.asarray(t, jnp.promote_types(jnp.result_type(t), jnp.float32))
    t = jnp.broadcast_to(t, x.shape[:1]) if t.ndim == 0 else t
    return t if clock is None else clock(t)


def _name_of(module: Any) -> str:
    if isinstance(module, (nnx.Module, linen.Module)) or _is_tree(module):
        return type(module).__name__
    return str(getattr(module, "__name__", "network"))


def capabilities_of(
    null: Callable | None,
    second_time: bool,
    guidance: Any = None,
    dropout: float = 0.0,
) -> frozenset[str]:
    """Capabilities of the networks here: jvp, taps, and what they were built with."""
    asked = {"null": null is not None, "second_time": second_time}
    asked |= {"guidance": guidance is not None, "dropout": dropout > 0.0}
    return frozenset({"jvp", "taps", *(name for name, on in asked.items() if on)})


@promotion.usual()
def functionalize(
    module: Any,
    *,
    path: Path | None,
    prediction: Prediction | str | None,
    capabilities: frozenset[str] = frozenset({"jvp"}),
    time_code: str = "gap",
    clock: Callable[[Array], Array] | None = None,
    null: Callable[[Condition], Condition] | None = None,
    num_classes: int | None = None,
    dtype: Any = None,
    example: tuple | None = None,
    name: str | None = None,
) -> Network:
    """A `Network` out of a module of flax or equinox.

    The module is called as ``module(x, t, cond)``, with ``s=`` if it has the capability
    ``second_time``, ``w=`` if it has ``guidance`` and the condition holds a guidance
    scale (see `binding.told`), ``taps=True`` if taps are asked for (it then returns
    ``(out, taps)``) and ``rng=key`` in training mode with ``dropout``. What it gets as
    ``s`` is the *time code* of the second time; without a second time the network
    stands at ``s = t``, where it predicts the velocity.

    Args:
      module: see `pure`.
      path: path on which it predicts.
      prediction: kind of its prediction.
      capabilities: what it can do, see `Network`.
      time_code: ``gap`` (the module sees ``t - s``) or ``end`` (it sees ``s``).
      clock: elementwise function applied to both times first, for clocks that reach
        far; see `embeddings.log_clock`.
      null: see `Network`.
      num_classes: see `Network`.
      dtype: compute dtype, for example bfloat16; default that of parameters and input.
      example: see `pure`.
      name: how errors call it; default the module's class.

    Returns:
      The network.

    Raises:
      ValueError: on a module with other state than parameters, a call that does not
        take what the capabilities promise, or an unknown time code.

    Numerics: results, taps included, leave in at least float32; float64 inputs and
    parameters are kept when ``dtype`` is None.
    """
    name = _name_of(module) if name is None else name
    if time_code not in TIME_CODES:
        raise ValueError(unknown("time_code", time_code, TIME_CODES))
    code = TIME_CODES[time_code]
    init, call, signature = pure(module, name=name, example=example)
    two_time = "second_time" in capabilities
    words = {"second_time": "s", "guidance": "w", "taps": "taps", "dropout": "rng"}
    _check_signature(
        name, signature, {v for k, v in words.items() if k in capabilities}
    )

    def apply(
        params: Params,
        x: Array,
        t: Array,
        cond: Condition = None,
        s: Array | None = None,
        *,
        taps: bool = False,
        rng: Array | None = None,
    ) -> Any:
        t = times_over(x, t, clock)
        cond, scale = untold(cond)
        options: dict[str, Any] = {}
        if scale is not None:
            if "guidance" not in capabilities:
                raise ValueError(
                    f"network {name!r} takes no guidance scale; build it with guidance="
                )
            options["w"] = times_over(x, scale, None)
        if two_time:
            options["s"] = code(t, t if s is None else times_over(x, s, clock))
        elif s is not None:
            raise ValueError(f"network {name!r} has no second time; call it without s")
        if taps:
            options["taps"] = True
        if rng is not None and "dropout" in capabilities:
            options["rng"] = rng
        params, x, cond = cast((params, x, cond), dtype)
        return widen(call(params, x, t, cond, **options))

    return Network(
        name=name,
        apply=apply,
        init=init,
        path=path,
        prediction=prediction,
        capabilities=capabilities,
        null=null,
        num_classes=num_classes,
    )
