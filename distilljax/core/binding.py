"""Networks as pure functions, and networks bound to parameters inside a loss.

A network is ``apply(params, x, t, cond=None, s=None, *, taps=False, rng=None) -> out |
(out, taps)`` together with the path it was trained on and the kind of its prediction.
Times reach ``apply`` as float32 arrays over the leading axes of ``x`` in the network's
own clock; ``x`` arrives divided by the path's ``sigma_d`` (for kind ``F`` by
``path.scale(t)``), and outputs are scaled back to data units here.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from distilljax.diffusion import fields
from distilljax.diffusion.fields import Field
from distilljax.diffusion.flow_maps import AffineFlowMap
from distilljax.diffusion.paths import Path, Time, expand, linear, trigflow
from distilljax.diffusion.predictions import (
    EPS,
    SCORE,
    VELOCITY,
    F,
    Prediction,
    carry,
    decompose,
    kind_of,
    recompose,
)
from distilljax.runtime.axes import by_parts, untyped
from distilljax.runtime.errors import unknown

Array = jax.Array
Params = Any
Condition = Any

CAPABILITIES = frozenset({"jvp", "taps", "second_time", "null", "guidance", "dropout"})

# Roles that judge the student carry one name more in profiles, see `scope`.
CRITICS = frozenset({"fake_score", "discriminator"})


def scope(role: str) -> AbstractContextManager[Any]:
    """Names the operations of a role in profiles: ``critic/fake_score``, ``teacher``.

    Names are metadata of the compiled program and change nothing that it computes.
    """
    return jax.named_scope(f"critic/{role}" if role in CRITICS else role)


class Apply(Protocol):
    """The functional form of a network; see the module docstring."""

    def __call__(
        self,
        params: Params,
        x: Array,
        t: Array,
        cond: Condition = None,
        s: Array | None = None,
        *,
        taps: bool = False,
        rng: Array | None = None,
    ) -> Any: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network without parameters.

    The samples of a batch do not see each other, in any of its functions: on several
    devices every part of a batch is evaluated by itself.

    Attributes:
      name: how errors call it.
      apply: the function; see `Apply`.
      init: ``key -> params``, a pytree of arrays.
      path: path on which it predicts; None for discriminators, rewards, decoders.
      prediction: kind of its prediction, or its name; None likewise.
      capabilities: subset of `CAPABILITIES`; one with ``guidance`` also takes
        conditions as `told` makes them.
      null: condition -> null condition of the same structure, for guidance.
      functions: further pure functions ``(params, ...)`` by name: ``logits``,
        ``encode``, ``decode``, ``value``.
      num_classes: labels that it accepts are ``0 .. num_classes - 1``; None if the
        condition is no label.
    """

    name: str
    apply: Apply | None
    init: Callable[[Array], Params]
    path: Path | None = None
    prediction: Prediction | str | None = None
    capabilities: frozenset[str] = frozenset({"jvp"})
    null: Callable[[Condition], Condition] | None = None
    functions: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    num_classes: int | None = None

    def __post_init__(self):
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise ValueError(unknown("capability", capability, CAPABILITIES))
        if self.prediction is not None:
            object.__setattr__(self, "prediction", kind_of(self.prediction))
        if (self.path is None) != (self.prediction is None):
            raise ValueError(
                f"network {self.name!r}: path and prediction belong together, got "
                f"path={self.path} and prediction={self.prediction}; say on which path "
                "it was trained and what it predicts, for example "
                "path=paths.linear(), prediction='velocity'"
            )


def joint(network: Network) -> Network:
    """A network that predicts ``x0`` and ``eps`` side by side, as one that predicts v.

    Progressive Distillation's third parameterisation (Salimans and Ho 2022, section 4;
    ``both`` in the code) reconciles the two outputs as ``sigma^2 x0 + alpha (x_t -
    sigma eps)``, which is the clean sample of ``v = alpha eps - sigma x0``.

    Args:
      network: its output has twice the channels of the state, ``concatenate([x0, eps],
        -1)``, both in units of standard deviation 1; its own ``prediction`` is not
        read.
    """
    path, apply = network.path, network.apply
    if path is None or apply is None:
        raise ValueError(f"network {network.name!r} predicts nothing: no path or apply")
    sigma_d = path.sigma_d

    def velocity(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        random = {} if rng is None else {"rng": rng}
        found = apply(params, x, t, cond, s, taps=taps, **random)
        both, *rest = found if taps else (found,)
        if both.shape != (*x.shape[:-1], 2 * x.shape[-1]):
            raise ValueError(
                f"network {network.name!r} must predict x0 and eps, {x.shape[:-1]} + "
                f"({2 * x.shape[-1]},), got {both.shape}"
            )
        clean, eps = jnp.split(both, 2, axis=-1)
        u = expand(t, x)
        out = path.alpha(u) * eps / sigma_d - path.sigma(u) * clean
        return (out, *rest) if taps else out

    return dataclasses.replace(network, apply=velocity, prediction="v")


def told(cond: Condition, scale: Array | None) -> Condition:
    """The condition of a student that is told its guidance scale.

    Args:
      cond: condition without it.
      scale: guidance scale ``w``, ``[B]``; None tells nothing.

    Returns:
      ``{"cond": cond, "guidance": scale}``, or ``cond`` alone.
    """
    return cond if scale is None else {"cond": cond, "guidance": scale}


def untold(cond: Condition) -> tuple[Condition, Array | None]:
    """``(condition, guidance scale)`` of a condition that `told` may have made."""
    if isinstance(cond, dict) and "guidance" in cond:
        return cond["cond"], cond["guidance"]
    return cond, None


def flow_output(path: Path) -> Prediction:
    """Kind in which flow maps of a path are affine: velocity where that is regular."""
    sd = path.sigma_d
    return VELOCITY if path in (linear(sd), trigflow(sd)) else F


def normalization(
    path: Path, kind: Prediction, x: Array, t: Time
) -> tuple[Array | float, float]:
    """Divisor of a network's input and factor of its output."""
    sd = path.sigma_d
    if kind is F:
        return path.scale(expand(t, x)), 1.0
    return sd, {EPS: 1.0, SCORE: 1.0 / sd}.get(kind, sd)


def _times(x: Array, t: Time) -> Array:
    t = jnp.asarray(t, jnp.promote_types(jnp.result_type(t), jnp.float32))
    return jnp.broadcast_to(t, x.shape[:1]) if t.ndim == 0 else t


@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """A role inside a loss: a network with its parameters.

    Attributes:
      role: name of the role.
      network: its network.
      params: its parameters.
      key: dropout key, None for evaluation mode. The trainer gives one to every role
        that trains and whose network has dropout, see `distilljax.context.Context.of`.
      rows: the parameters once more, ``[parts, ...]`` with a row for every part of the
        batch, where their gradients are to be summed over devices later; see
        `axes.by_parts`. A network with a dropout key is applied to the whole batch, so
        that its masks do not depend on the number of devices.
    """

    role: str
    network: Network
    params: Params
    key: Array | None = None
    rows: Params = None

    @property
    def path(self) -> Path:
        """Path of the network.

        Raises:
          ValueError: if the network does not say one.
        """
        if self.network.path is None:
            raise ValueError(
                f"role {self.role!r}: network {self.network.name!r} does not say its "
                "path and prediction kind; build it with path= and prediction="
            )
        return self.network.path

    @property
    def kind(self) -> Prediction:
        """Prediction kind of the network."""
        _ = self.path
        assert isinstance(self.network.prediction, Prediction)
        return self.network.prediction

    def rng(self, key: Array | None) -> Bound:
        """The same role with another dropout key, or with None in evaluation mode."""
        return dataclasses.replace(self, key=key)

    def like(self, other: Bound) -> Bound:
        """The same role with the dropout of another: one key drops the same units.

        A target network that stands for the student at another point shares its masks
        (Song et al. 2023); in evaluation mode, or without dropout, nothing changes.
        """
        return self.rng(other.key if "dropout" in self.network.capabilities else None)

    def turn(self, index: int | Array) -> Bound:
        """The same role with the dropout of one of several passes in a row."""
        if self.key is None:
            return self
        return self.rng(jax.random.fold_in(self.key, index))

    def detached(self) -> Bound:
        """The same role with parameters that get no gradient; inputs still do."""
        params = jax.lax.stop_gradient(self.params)
        return dataclasses.replace(self, params=params, rows=None)

    def apply(
        self,
        x: Array,
        t: Time,
        cond: Condition = None,
        s: Time | None = None,
        *,
        taps: bool = False,
    ) -> Any:
        """Raw network output in the network's own clock and normalisation.

        Args:
          x: state as the network sees it, ``[B, ...]``.
          t: time in the network's clock, scalar or leading axes.
          cond: condition pytree.
          s: second time; only for networks with ``second_time``.
          taps: also return intermediate features.

        Returns:
          The output, or ``(output, taps)``.
        """
        if self.network.apply is None:
            raise ValueError(
                f"role {self.role!r}: network {self.network.name!r} has no apply; call "
                f"one of its functions: {sorted(self.network.functions)}"
            )
        options: dict[str, Any] = {}
        random = {} if self.key is None else {"rng": self.key}
        if taps:
            self._require("taps")
            options["taps"] = True
        if s is not None:
            self._require("second_time")
            s = jnp.broadcast_to(_times(x, s), _times(x, t).shape)
        function = functools.partial(self.network.apply, **options)
        return self._run(function, x, _times(x, t), cond, s, **random)

    def call(self, name: str, *args, **kwargs) -> Any:
        """Another declared function of the network (``logits``, ``decode``, ...)."""
        if name not in self.network.functions:
            raise ValueError(
                unknown(
                    f"function of {self.network.name!r}", name, self.network.functions
                )
            )
        function = functools.partial(self.network.functions[name], **kwargs)
        random = {}
        if self.key is not None:
            if "rng" not in inspect.signature(function).parameters:
                raise ValueError(
                    f"role {self.role!r}: network {self.network.name!r} declares "
                    f"'dropout', and its function {name!r} takes no rng=, so that its "
                    "dropout would never run; let it take rng=, or do not declare it"
                )
            random = {"rng": self.key}
        return self._run(function, *args, **random)

    def _run(self, function: Callable, *args: Any, **random: Any) -> Any:
        with scope(self.role):
            if self.rows is not None and not random:
                out = by_parts(function, self.rows, *args)
                if out is not None:
                    return out
            return untyped(function, *args)(self.params, *args, **random)

    def _require(self, capability: str) -> None:
        if capability not in self.network.capabilities:
            raise ValueError(
                f"role {self.role!r} needs a network with {capability!r}, and "
                f"{self.network.name!r} has {sorted(self.network.capabilities)}"
            )

    def _units(self, x: Array, t: Time) -> tuple[Array, float]:
        """Input as the network sees it, and the factor of its output."""
        divisor, scale = normalization(self.path, self.kind, x, t)
        plain = isinstance(divisor, float) and divisor == 1.0
        return (x if plain else x / divisor), scale

    def _own(
        self, cond: Condition, x: Array, t: Time, s: Time | None, taps: bool = False
    ) -> Any:
        """Prediction in data units on the network's own path."""
        inner, scale = self._units(x, t)
        out = self.apply(inner, t, cond, s, taps=taps)
        if taps:
            return out[0] * scale, out[1]
        return out if scale == 1.0 else out * scale

    def prediction(
        self,
        cond: Condition = None,
        *,
        kind: str | Prediction | None = None,
        path: Path | None = None,
    ) -> Field:
        """The network as a field of any kind on any path.

        Args:
          cond: condition pytree.
          kind: kind wanted; default the network's.
          path: path on which the field is called; default the network's.

        Returns:
          A field in data units.
        """
        return fields.viewed(
            lambda x, t: self._own(cond, x, t, None),
            self.path,
            self.kind,
            on=self.path if path is None else path,
            as_kind=kind,
        )

    def denoiser(self, cond: Condition = None, *, path: Path | None = None) -> Field:
        """``E[x0 | x_t]`` as a field; see `prediction`."""
        return self.prediction(cond, kind="x0", path=path)

    def velocity(self, cond: Condition = None, *, path: Path | None = None) -> Field:
        """``dx_t/dt`` as a field (the one-time view of a network); see `prediction`."""
        return self.prediction(cond, kind=VELOCITY, path=path)

    def denoised_and_taps(
        self, cond: Condition, x: Array, t: Time, *, path: Path | None = None
    ) -> tuple[Array, Any]:
        """Denoiser prediction and intermediate features in one evaluation."""
        on = self.path if path is None else path
        x_own, t_own = carry(on, self.path, x, t)
        out, features = self._own(cond, x_own, t_own, None, taps=True)
        return decompose(self.path, self.kind, out, x_own, t_own)[0], features

    def guided(
        self,
        data: Mapping[str, Any],
        scale: Time = 1.0,
        *,
        kind: str | Prediction = "x0",
        path: Path | None = None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        max_norm: float | None = None,
        weak: Bound | None = None,
    ) -> Field:
        """Guided field ``null + w (cond - null)``; plain when ``scale`` is 1.

        Args:
          data: batch with ``cond`` and optionally ``null``; see `null_condition`.
          scale: guidance scale ``w``, scalar or ``[B]``.
          kind: kind wanted.
          path: path on which the field is called.
          interval: times in that path's clock where guidance is on.
          rescale: see `fields.guide`.
          max_norm: see `fields.guide`.
          weak: autoguidance: a weaker role under the same condition takes the place of
            the null condition.

        Returns:
          A field in data units.
        """
        cond = data.get("cond")
        strong = self.prediction(cond, kind=kind, path=path)
        if isinstance(scale, (int, float)) and scale == 1:
            return strong
        if weak is not None:
            away = weak.prediction(cond, kind=kind, path=path)
        else:
            away = self.prediction(self.null_condition(data), kind=kind, path=path)
        return fields.guided(
            strong, away, scale, interval=interval, rescale=rescale, max_norm=max_norm
        )

    def null_condition(self, data: Mapping[str, Any]) -> Condition:
        """The null condition: ``data["null"]`` if present, else the network's.

        Raises:
          ValueError: if neither exists.
        """
        if "null" in data:
            return data["null"]
        if self.network.null is None:
            raise ValueError(
                f"guidance needs a null condition, and network {self.network.name!r} "
                f"of role {self.role!r} has none: give it null=, add a field 'null' to "
                "the batch, or set guidance to 1 (off)"
            )
        return self.network.null(data.get("cond"))

    def flow_map(
        self,
        cond: Condition = None,
        *,
        path: Path | None = None,
        two_time: bool | None = None,
        boundary: float | None = 0.0,
    ) -> AffineFlowMap:
        """The network as a flow map ``f = a x + b F`` on any path.

        Args:
          cond: condition pytree.
          path: path of the states and times; default the network's.
          two_time: whether the network is told the end time; default: if it can be.
          boundary: see `AffineFlowMap`; None is `Path.boundary`, consistency models'.

        Returns:
          The flow map. For a network without a second time it is the jump along its
          prediction, a consistency function at ``s = 0``.
        """
        on = self.path if path is None else path
        kind = flow_output(on)
        boundary = on.boundary if boundary is None else boundary
        if two_time is None:
            two_time = "second_time" in self.network.capabilities
        if two_time:
            self._require("second_time")

        def output(x: Array, t: Time, s: Time) -> Array:
            x_own, t_own = carry(on, self.path, x, t)
            s_own = None
            if two_time:
                s_own = carry(on, self.path, x, s)[1]
            out = self._own(cond, x_own, t_own, s_own)
            if on == self.path and self.kind is kind:
                return out
            pair = decompose(self.path, self.kind, out, x_own, t_own)
            return recompose(on, kind, *pair, t)

        return AffineFlowMap(output, on, kind, boundary)


class Nets:
    """The bound roles of a phase, by attribute or item."""

    def __init__(self, bound: Mapping[str, Bound]):
        self._bound = dict(bound)

    def __getitem__(self, role: str) -> Bound:
        if role not in self._bound:
            raise KeyError(unknown("role", role, self._bound))
        return self._bound[role]

    def __getattr__(self, role: str) -> Bound:
        if role.startswith("_"):
            raise AttributeError(role)
        if role not in self._bound:
            raise AttributeError(unknown("role", role, self._bound))
        return self._bound[role]

    def __contains__(self, role: object) -> bool:
        return role in self._bound

    def __iter__(self):
        return iter(self._bound)

    def items(self):
        """Pairs of names and bound roles."""
        return self._bound.items()
