"""The state of a run, and how roles get their first parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distilljax.core.context import fold_name
from distilljax.training import distributed
from distilljax.training.roles import Setup

Array = jax.Array
Params = Any


class TrainState(NamedTuple):
    """What changes while training; donated to every cycle.

    Attributes:
      params: parameters by role, of the roles that are trained or follow another.
      opt: optimizer states by trained role.
      ema: evaluation EMAs by role.
      memory: the method's state by name.
      step: cycles done, int32 scalar.
      counters: by trained role ``skipped`` and ``in_a_row``, int32 scalars.
      key: typed key from which the cycles' keys are folded; never changes.
    """

    params: dict[str, Params]
    opt: dict[str, Any]
    ema: dict[str, Params]
    memory: dict[str, Any]
    step: Array
    counters: dict[str, dict[str, Array]]
    key: Array


def moving(setup: Setup) -> tuple[str, ...]:
    """Roles whose parameters change: trained, or following another role."""
    method = setup.method
    return tuple(
        name
        for name, role in method.roles.items()
        if name in method.trained or (role.follow is not None and role.derive is None)
    )


def parameter_shapes(setup: Setup) -> dict[str, Params]:
    """Shapes of the parameters of every role that owns some."""
    return {
        name: jax.eval_shape(setup.networks[name].init, jax.random.key(0))
        for name, role in setup.method.roles.items()
        if role.derive is None
    }


def frozen_roles(setup: Setup) -> tuple[str, ...]:
    """Roles with parameters that never change."""
    changing = moving(setup)
    return tuple(
        name
        for name, role in setup.method.roles.items()
        if name not in changing and role.derive is None
    )


def leaves(tree: Params) -> dict[str, Any]:
    """Leaves by readable path, ``block/0/w``."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in flat
    }


def _different(role: str, source: str, leaf: str, own: Any, came: Any) -> ValueError:
    def shape(x):
        return "no such leaf" if x is None else f"shape {tuple(x.shape)}"

    return ValueError(
        f"role {role!r} starts from {source!r}, and leaf {leaf!r} does not fit: its "
        f"network has {shape(own)}, the source {shape(came)}; give the role a network "
        "of the same sizes or another init"
    )


def start_from(role: str, own: Params, source_name: str, source: Params) -> Params:
    """A role's own parameters with the leaves of a source copied in.

    Args:
      role: role that starts.
      own: parameters of its network's own init.
      source_name: where the source comes from, for errors.
      source: parameters to copy. Leaves that it lacks (a zero-initialised embedding of
        a second time) keep their own init.

    Returns:
      Parameters with the structure and dtypes of ``own``.

    Raises:
      ValueError: if a leaf has another shape, or the source has one more.
    """
    named, given = leaves(own), leaves(source)
    for leaf, value in given.items():
        if leaf not in named or tuple(named[leaf].shape) != tuple(value.shape):
            raise _different(role, source_name, leaf, named.get(leaf), value)
    flat = [
        jnp.copy(jnp.asarray(given[leaf], value.dtype)) if leaf in given else value
        for leaf, value in named.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(own), flat)


class _Start:
    """Resolves the chain of inits while the state is traced."""

    def __init__(self, setup: Setup, key: Array, given: Mapping[str, Params]):
        self._setup, self._key, self._given = setup, key, given
        self._built: dict[str, Params] = {}
        self._open: list[str] = []

    def __call__(self, name: str) -> Params:
        if name not in self._built:
            if name in self._open:
                chain = " -> ".join([*self._open, name])
                raise ValueError(f"the inits of the roles go in a circle: {chain}")
            self._open.append(name)
            self._built[name] = self._build(name)
            self._open.pop()
        return self._built[name]

    def _build(self, name: str) -> Params:
        role = self._setup.method.roles.get(name)
        if role is None:
            return self._given[name]
        if role.derive is not None:
            raise ValueError(
                f"role {name!r} is derived and owns no parameters to start from"
            )
        own = self._setup.networks[name].init(fold_name(self._key, name))
        if name in self._given:
            return start_from(name, own, f"params[{name!r}]", self._given[name])
        if role.init == "random":
            return own
        return start_from(name, own, role.init, self(role.init))


def check_given(setup: Setup, given: Mapping[str, Params]) -> None:
    """Checks that every init can be resolved from the parameters given.

    Raises:
      ValueError: naming the role, what it starts from and what to pass.
    """
    roles = setup.method.roles
    for name in given:
        if name not in {*roles, "teacher"}:
            known = ", ".join(sorted(roles))
            raise ValueError(
                f"params has {name!r}, which is no role of method "
                f"{setup.method.name!r}. Known: {known}."
            )
    for name, role in roles.items():
        if role.derive is not None or name in given or role.init == "random":
            continue
        own = role.init in ("given", name)
        if own or (role.init not in roles and role.init not in given):
            missing = name if own else role.init
            raise ValueError(
                f"role {name!r} starts from {missing!r}, whose parameters were not "
                f"given: pass params={{{missing!r}: ...}}"
            )
    for name in frozen_roles(setup):
        if name in given:
            own = leaves(jax.eval_shape(setup.networks[name].init, jax.random.key(0)))
            came = leaves(given[name])
            for leaf in sorted({*own, *came}):
                a, b = own.get(leaf), came.get(leaf)
                if a is None or b is None or tuple(a.shape) != tuple(b.shape):
                    raise _different(name, f"params[{name!r}]", leaf, a, b)


def first_state(setup: Setup, key: Array, given: Mapping[str, Params]) -> TrainState:
    """The first state as a pure function of a seed's key; see `create_state`."""
    start = _Start(setup, fold_name(key, "init"), given)
    return _around(setup, key, {name: start(name) for name in moving(setup)})


def _around(setup: Setup, key: Array, params: Mapping[str, Params]) -> TrainState:
    """The first state around the first parameters."""
    method, config = setup.method, setup.config
    copy = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731
    memory = {}
    if method.memory is not None:
        memory = dict(method.memory(config.batch_size, setup.sample_shape))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        params=copy(dict(params)),
        opt={r: setup.optimizers[r].init(params[r]) for r in method.trained},
        ema={r: copy(params[r]) for r in method.trained if config.role(r).averaged},
        memory=jax.tree.map(jnp.asarray, memory),
        step=zero,
        counters={r: {"skipped": zero, "in_a_row": zero} for r in method.trained},
        key=fold_name(key, "train"),
    )


def state_shapes(setup: Setup) -> TrainState:
    """Shapes and dtypes of the state; no start changes those of a network's own."""
    shapes = parameter_shapes(setup)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(
        lambda k, p: _around(setup, k, p), key, {n: shapes[n] for n in moving(setup)}
    )


def state_shardings(setup: Setup) -> TrainState | None:
    """Shardings of the state; None without a mesh.

    Raises:
      ValueError: if a rule of the config does not fit a parameter.
    """
    if setup.mesh is None:
        return None
    shapes = state_shapes(setup)

    def by_role(trees: Mapping[str, Any]) -> dict[str, Any]:
        return {role: setup.shardings(role, tree) for role, tree in trees.items()}

    whole = jax.tree.map(lambda _: setup.replicated, shapes)
    return whole._replace(
        params=by_role(shapes.params), opt=by_role(shapes.opt), ema=by_role(shapes.ema)
    )


def _placed(setup: Setup, params: Mapping[str, Params] | None) -> dict[str, Params]:
    """Parameters given, checked and on the devices; arrays already there are kept."""
    given = dict(params or {})
    check_given(setup, given)
    if setup.mesh is None:
        return jax.device_put(given)
    roles = setup.method.roles
    return {
        name: distributed.spread(
            tree, setup.shardings(name if name in roles else "student", tree)
        )
        for name, tree in given.items()
    }


def create_state(
    setup: Setup, params: Mapping[str, Params] | None = None
) -> TrainState:
    """The first state, placed on the mesh.

    Args:
      setup: see `Setup`.
      params: parameters given, by role; copied, never aliased.

    Raises:
      ValueError: naming the role and the leaf if parameters do not fit.
    """
    given = _placed(setup, params)
    build = jax.jit(
        lambda key, given: first_state(setup, key, given),
        out_shardings=state_shardings(setup),
    )
    return build(jax.random.key(setup.config.seed), given)


def create_frozen(
    setup: Setup, params: Mapping[str, Params] | None = None
) -> dict[str, Params]:
    """Parameters of the frozen roles, in the dtype that the config holds them in.

    Arrays given are used as they are where that is theirs.
    """
    given = _placed(setup, params)
    roles = frozen_roles(setup)
    own = [name for name in roles if name not in given]
    narrow = jnp.dtype(setup.config.frozen.dtype) != jnp.float32
    cast = [name for name in roles if name in given and narrow]

    def build(key, given):
        start = _Start(setup, fold_name(key, "init"), given)
        made = {name: start(name) for name in own} | {n: given[n] for n in cast}
        return {name: held(setup, tree) for name, tree in made.items()}

    frozen = {}
    if own or cast:
        shapes = parameter_shapes(setup)
        places = {name: setup.shardings(name, shapes[name]) for name in own + cast}
        place = jax.jit(build, out_shardings=None if setup.mesh is None else places)
        frozen = place(jax.random.key(setup.config.seed), given)
    return {name: frozen.get(name, given.get(name)) for name in roles}


def held(setup: Setup, params: Params) -> Params:
    """Parameters of a frozen role in the dtype of the config; float32 changes none."""
    dtype = jnp.dtype(setup.config.frozen.dtype)

    def one(leaf):
        narrow = dtype != jnp.float32 and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if narrow else leaf

    return jax.tree.map(one, params)


def abstract(setup: Setup, params: Mapping[str, Params] | None = None) -> TrainState:
    """Shapes, dtypes and shardings of the state, without building it."""
    check_given(setup, dict(params or {}))
    places = state_shardings(setup)
    shapes = state_shapes(setup)
    if places is None:
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = jax.tree.map(lambda _: one, shapes)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        shapes,
        places,
    )
