"""Golden vectors of the official codes: files, networks, and runs of our methods.

`README.md` beside this file says what a file holds. A `Run` says how a method of the
catalogue is set up so that it computes what a file's official code computed: the same
inputs stand in for its random draws, by name, and a draw that is not given is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from distilljax import paths
from distilljax.core.binding import Bound, Nets, Network
from distilljax.core.context import Context
from distilljax.core.method import Method
from distilljax.training.config import TrainConfig
from distilljax.training.roles import make_setup
from distilljax.training.update import Update

Array = jax.Array
FOLDER = pathlib.Path(__file__).parent / "vectors"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.npz")))


class Vector:
    """One file."""

    def __init__(self, name: str):
        with np.load(FOLDER / f"{name}.npz") as file:
            self.arrays = {k: file[k] for k in file.files if k != "meta"}
            self.meta = json.loads(str(file["meta"]))
        self.name, self.method = name, self.meta["method"]
        self.kind = self.meta.get("kind", "gradient")
        self.options, self.outputs = self.meta["options"], self.meta["outputs"]

    def given(self, name: str) -> Array:
        """An input, ``in.NAME``."""
        return jnp.asarray(self.arrays[f"in.{name}"])

    def tree(self, prefix: str) -> dict[str, Array]:
        """The arrays under a prefix, by the rest of their names."""
        start = f"{prefix}."
        found = {k: v for k, v in self.arrays.items() if k.startswith(start)}
        return {k[len(start) :]: jnp.asarray(v) for k, v in found.items()}

    @property
    def data(self) -> dict[str, Array]:
        """The batch: ``x0`` and the labels, where the file has them."""
        names = {"x0": "x0", "cond": "y"}
        return {k: self.given(v) for k, v in names.items() if f"in.{v}" in self.arrays}

    @property
    def mask(self) -> Array | None:
        return self.given("mask") if "in.mask" in self.arrays else None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        for name in ("x0", "start", "x_t"):
            if f"in.{name}" in self.arrays:
                return self.arrays[f"in.{name}"].shape[1:]
        raise KeyError(f"{self.name} has no input of the shape of a batch")

    @property
    def batch_size(self) -> int:
        for name in ("x0", "start", "x_t"):
            if f"in.{name}" in self.arrays:
                return len(self.arrays[f"in.{name}"])
        raise KeyError(f"{self.name} has no input of the shape of a batch")

    def network(self, role: str, **changes: Any) -> Network:
        """The network of a role, as README.md describes it."""
        spec = {**self.meta["networks"][role], **changes}
        if spec["kind"] == "head":
            return head()
        if spec["kind"] == "log-weight":
            return log_weight()
        if spec["kind"] == "policy":
            return policy(role, spec)
        return backbone(role, spec, self.sample_shape, self.mask)

    def networks(self, **changes: Network) -> dict[str, Network]:
        """Networks by role, those in ``changes`` in place of the file's."""
        own = [role for role in self.meta["networks"] if role not in changes]
        return {**{role: self.network(role) for role in own}, **changes}


def log0(t: Array) -> Array:
    return jnp.log(jnp.where(t <= 0.0, 0.002, t)) / 4.0


FEATURES: dict[str, Callable[[Array, Array, Any, Array], Array]] = {
    "t": lambda t, s, w, angle: t,
    "t-s": lambda t, s, w, angle: t - s,
    "log(t)/4": lambda t, s, w, angle: jnp.log(t) / 4.0,
    "log(max(t,0.002))/4": lambda t, s, w, angle: jnp.log(jnp.maximum(t, 0.002)) / 4,
    "log(max(s,0.002))/4": lambda t, s, w, angle: jnp.log(jnp.maximum(s, 0.002)) / 4,
    "log0(t)/4": lambda t, s, w, angle: log0(t),
    "w/10": lambda t, s, w, angle: jnp.zeros_like(t) if w is None else w / 10.0,
    "angle": lambda t, s, w, angle: angle,
}


def path_of(spec: Mapping[str, Any]) -> tuple[paths.Path, str]:
    """Path and kind of prediction of a kind of network."""
    kind, sigma_d = spec["kind"], spec.get("sigma_d", 1.0)
    if kind == "edm":
        return paths.edm(sigma_d=sigma_d), "F"
    if kind == "linear-velocity":
        return paths.linear(sigma_d=sigma_d), "velocity"
    if kind == "vp-eps":
        return paths.vp(), "eps"
    if kind == "trigflow-F":
        return paths.trigflow(sigma_d=sigma_d), "F"
    if kind == "policy":
        return paths.linear(), "velocity"
    if kind == "sd-eps":
        return paths.vp_scaled_linear(sigma_d=sigma_d), "eps"
    if kind in ("cosine-v", "cosine-x0"):
        # Its log-SNR schedule is a clock on TrigFlow's circle.
        return paths.trigflow(sigma_d=sigma_d), kind.removeprefix("cosine-")
    raise KeyError(f"no path is known for networks of kind {kind!r}")


def inputs(spec: Mapping[str, Any], path: paths.Path) -> Callable[..., Array]:
    """``(x, t, cond, s) -> z``: what the first layer of a network sees."""
    names, classes = spec["features"], spec.get("classes", 0)

    def stacked(x: Array, t: Array, cond: Any, s: Array | None) -> Array:
        scale = None
        if isinstance(cond, dict) and "guidance" in cond:
            cond, scale = cond["cond"], cond["guidance"]
        t = jnp.broadcast_to(t, x.shape[:1])
        s = t if s is None else jnp.broadcast_to(s, x.shape[:1])
        angle = path.angle(t)
        rows = [FEATURES[name](t, s, scale, angle)[:, None] for name in names]
        if classes:
            label = jnp.full(x.shape[:1], classes) if cond is None else cond
            rows.append(jax.nn.one_hot(label, classes, dtype=x.dtype))
        return jnp.concatenate([x.reshape(x.shape[0], -1), *rows], 1)

    return stacked


def backbone(
    role: str,
    spec: Mapping[str, Any],
    sample_shape: tuple[int, ...],
    mask: Array | None = None,
    at: tuple[paths.Path, str] | None = None,
) -> Network:
    """The one-layer network of a role; ``at`` says path and prediction otherwise.

    With dropout in its description it multiplies its hidden layer by the mask of the
    file when it is called in training mode.
    """
    path, prediction = path_of(spec) if at is None else at
    see, classes = inputs(spec, path), spec.get("classes", 0)
    drops = bool(spec.get("dropout"))
    # EDM's F is minus the F of TrigFlow, which the library's kind is named after.
    sign = -1.0 if spec["kind"] == "edm" else 1.0

    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        h = jnp.tanh(see(x, t, cond, s) @ params["W1"] + params["b1"])
        if rng is not None:
            h = h * (mask if drops else None)
        out = sign * (h @ params["W2"] + params["b2"]).reshape(x.shape)
        return (out, (h,)) if taps else out

    capabilities = {"jvp", "taps"}
    told = {"second_time": ("t-s", "log(max(s,0.002))/4"), "guidance": ("w/10",)}
    for capability, names in told.items():
        if set(names) & set(spec["features"]):
            capabilities.add(capability)
    capabilities |= {"dropout"} if drops else set()
    null = None
    if classes:
        capabilities.add("null")

        def null(cond):
            return jnp.full_like(cond, classes)

    return Network(
        role,
        apply,
        lambda key: {},
        path,
        prediction,
        frozenset(capabilities),
        null=null,
    )


def head() -> Network:
    """The discriminator: ``tanh(1.3 h) @ w + b`` on the hidden layer of its trunk."""

    def logits(params, features, t=None, cond=None, *more):
        (h,) = features
        return jnp.tanh(1.3 * h) @ params["w"] + params["b"]

    return Network("head", None, lambda key: {}, functions={"logits": logits})


def policy(role: str, spec: Mapping[str, Any]) -> Network:
    """K one-layer networks, and the weights and the spread of their mixture."""
    path, prediction = path_of(spec)
    see = inputs(spec, path)

    def emit(params, x, t, cond=None):
        z, flat = see(x, t, cond, None), x.reshape(x.shape[0], -1)

        def one(k):
            h = jnp.tanh(z @ params[f"W1_{k}"] + params[f"b1_{k}"])
            return (h @ params[f"W2_{k}"] + params[f"b2_{k}"]).reshape(x.shape)

        means = jnp.stack([one(k) for k in range(spec["components"])], 1)
        # Channels come first in the files: the posterior sums over them alone.
        weights = jax.nn.log_softmax(flat @ params["Wl"])
        logits = weights.reshape(weights.shape + (1,) * (x.ndim - 1))
        places = (*weights.shape, 1, *x.shape[2:])
        log_std = flat @ params["ws"] + params["ws0"]
        return means, log_std, jnp.broadcast_to(logits, places)

    return Network(
        role,
        None,
        lambda key: {},
        path,
        prediction,
        functions={"policy": emit},
    )


def log_weight() -> Network:
    """``w(t) = a + c t``."""

    def value(params, t):
        return params["a"] + params["c"] * t

    return Network("log_weight", None, lambda key: {}, functions={"log_weight": value})


@dataclasses.dataclass(frozen=True)
class Run:
    """How a method computes one output of a file.

    Attributes:
      method: built with the options of the file.
      draws: inputs in place of random draws, by ``OWNER/NAME`` (the term or draw that
        asks, and the name it asks for), or by ``NAME`` for every owner. Pairs of times
        are tuples.
      phase: name of the phase whose loss it is.
      terms: names of its terms, each without its weight; None is the whole weighted
        loss of the phase.
      data: the batch; what a draw of the phase would make may stand here instead, under
        the draw's name, and then that draw is not run.
      step: training iteration.
      networks: by role.
      params: by role, for roles whose parameters are not the file's.
      memory: entries of the method's memory.
      k: constant of our conventions where the method's differ from README.md's.
    """

    method: Method
    draws: Mapping[str, Any]
    networks: Mapping[str, Network]
    data: Mapping[str, Any]
    phase: str = "student"
    terms: tuple[str, ...] | None = None
    step: int = 0
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def index_draw(index: Any, low: Any, high: Any) -> Array:
    """The uniform number from which a uniform index ``low .. high`` is made."""
    return (jnp.asarray(index) - low + 0.5) / (jnp.asarray(high) - low + 1)


LAW_KINDS = {"linear": "linear-velocity", "vp": "vp-eps", "sd": "sd-eps"}


def law_path(spec: Mapping[str, Any]) -> paths.Path:
    """Path of the network on which a law file wants its times."""
    return path_of({**spec, "kind": LAW_KINDS.get(spec["network"], spec["network"])})[0]


def measured(t: Array, spec: Mapping[str, Any], path: paths.Path) -> np.ndarray:
    """Times in the measure that a law file names."""
    if spec["measure"] == "sigma/alpha":
        return np.asarray(path.sigma(t) / path.alpha(t))
    return np.asarray(t)


class _Asked(Exception):
    """A law and the path in whose clock a term wanted times of it."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Asking(Context):
    """A context that stops where times are wanted."""

    def times(self, name, law, path=None):
        raise _Asked(name, law, self.nets["student"].path if path is None else path)


def sampled(method: Method, draw: str, vector: Vector, count: int = 100_000) -> Any:
    """Times that a term asks for by a law, in the measure that a file names."""
    (spec,) = [s for s in vector.meta["laws"].values() if s["draw"] == draw]
    owner, wanted = draw.split("/")
    network = Network("asking", None, lambda key: {}, law_path(spec), "velocity")
    nets = Nets({role: Bound(role, network, {}) for role in method.roles})
    data = dict.fromkeys(("x0", "x"), jnp.zeros((1, 2)))
    key = jax.random.key(0)
    context = _Asking(nets, data, 0, 0, {}, key, 1, (2,), owner=owner)
    (loss,) = [t.loss for p in method.phases for t in p.terms if t.name == owner]
    try:
        loss(context)
    except _Asked as asked:
        name, law, path = asked.args
    assert name == wanted
    return measured(law(key, (count,), path), spec, path)


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Context):
    """A context whose draws are given by name."""

    table: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def drawn(self, name: str) -> Any:
        super().key(name)
        for label in (f"{self.owner}/{name}", name):
            if label in self.table:
                return self.table[label]
        raise KeyError(
            f"{self.owner!r} draws {name!r}, which the run does not give: "
            f"{sorted(self.table)}"
        )

    def key(self, name):
        # A draw without a function of its own is given as the key that makes it.
        return self.table.get(f"{self.owner}/{name}", super().key(name))

    def normal(self, name, like=None):
        return self.drawn(name)

    def uniform(self, name, shape=None):
        return self.drawn(name)

    def integers(self, name, count):
        return self.drawn(name)

    def choice(self, name, count):
        return self.drawn(name)

    def times(self, name, law, path=None):
        return self.drawn(name)

    def pair(self, name, law, path=None):
        return self.drawn(name)

    def zeros(self):
        return jnp.zeros((self.batch_size,))


def gradients(vector: Vector, run: Run) -> tuple[Array, dict[str, dict[str, Array]]]:
    """``(loss, gradients by role)`` of a run, through the trainer's own update."""
    method = run.method
    config = TrainConfig.of({"batch_size": vector.batch_size})
    setup = make_setup(method, run.networks, config, vector.sample_shape)
    params = {role: vector.tree(f"w.{role}") for role in method.roles}
    params.update(run.params)
    (phase,) = [p for p in method.phases_at(run.step) if p.name == run.phase]
    if run.terms is not None:
        kept = [t._replace(weight=1.0) for t in phase.terms if t.name in run.terms]
        assert len(kept) == len(run.terms), [t.name for t in phase.terms]
        phase = phase._replace(terms=tuple(kept))
    draws = {k: v for k, v in phase.draws.items() if k not in run.data}
    phase = phase._replace(draws=draws)
    state = SimpleNamespace(
        step=jnp.asarray(run.step), key=jax.random.key(0), params=params
    )
    update = Update(setup, phase, state, {}, {})
    start = (
        method.memory(vector.batch_size, vector.sample_shape) if method.memory else {}
    )
    args = (run.data, {**start, **run.memory}, update.key, jnp.asarray(0), {})

    def total(trained: Any) -> Array:
        return jnp.sum(update.terms(trained, *args)[0])

    trained = {role: params[role] for role in phase.trains}
    context = functools.partial(Given, table=run.draws)
    with mock.patch("distilljax.training.update.Context", context):
        return jax.jit(jax.value_and_grad(total))(trained)


def flat(vector: Vector, output: str, found: Mapping[str, Any]) -> tuple[Any, Any]:
    """``(official, ours)`` over all stored leaves of an output, offsets added."""
    official, ours = [], []
    for label, value in sorted(vector.tree(f"g.{output}").items()):
        role, leaf = label.split(".", 1)
        offset = vector.arrays.get(f"offset.{output}.{label}", 0.0)
        official.append(np.ravel(value + offset))
        ours.append(np.ravel(found[role][leaf] + offset))
    return np.concatenate(official), np.concatenate(ours)


def compare(official: np.ndarray, ours: np.ndarray) -> tuple[float, float]:
    """``(k, residual)``: the constant between them, and what it leaves."""
    k = float(official @ ours / (ours @ ours))
    left = np.linalg.norm(official - k * ours) / np.linalg.norm(official)
    return k, float(left)
