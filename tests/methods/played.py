"""One phase of a method on small networks, without a trainer around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distilljax.core.binding import Network
from distilljax.core.context import Context, fold_name
from distilljax.core.method import Method, Out
from distilljax.diffusion.oracles import Gaussian
from distilljax.diffusion.paths import Path
from distilljax.training.config import TrainConfig
from distilljax.training.roles import make_setup
from distilljax.training.state import TrainState
from distilljax.training.update import Update
from tests import exact
from tests.methods import cases


class Played(NamedTuple):
    """A phase at a cycle: what `values` and `gradients` are taken of."""

    update: Update
    params: dict[str, Any]
    data: dict[str, jax.Array]
    memory: dict[str, Any]

    @property
    def key(self) -> jax.Array:
        return jax.random.fold_in(self.update.key, 0)

    def context(self) -> Context:
        """The context of the phase, its draws included."""
        return self.update.context(self.params, self.data, self.memory, self.key, 0)

    def values(self, **params: Any) -> dict[str, jax.Array]:
        """Values of every term; trained roles may get other parameters."""
        trained = {**self.params, **params}
        ctx = self.update.context(trained, self.data, self.memory, self.key, 0)
        found = {t.name: t.loss(ctx.of(t.name)) for t in self.update.phase.terms}
        return {k: v.values if isinstance(v, Out) else v for k, v in found.items()}

    def gradients(self) -> dict[str, Any]:
        """Gradients of the trained roles, as the trainer takes them."""
        # Eager: the programs are many and small, and run once.
        return self.update.gradients(
            self.params, self.data, self.memory, self.key, 0, {}
        )[0]


def params_of(method: Method, nets: Mapping[str, Network], same: tuple[str, ...]):
    """Parameters by role: a teacher, and others a little off it unless ``same``."""
    out = {}
    for name, role in method.roles.items():
        leaves, tree = jax.tree.flatten(nets[name].init(jax.random.key(0)))
        if name != "teacher" and name not in same and role.init != "given":
            key = fold_name(jax.random.key(1), name)
            leaves = [
                leaf + 0.1 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
                for i, leaf in enumerate(leaves)
            ]
        out[name] = jax.tree.unflatten(tree, leaves)
    return out


def play(
    method: Method,
    *,
    step: int = 0,
    phase: str = "student",
    batch_size: int = 16,
    same: tuple[str, ...] = (),
    given: Mapping[str, Any] | None = None,
    data: Mapping[str, jax.Array] | None = None,
    memory: Mapping[str, Any] | None = None,
    **networks: Network,
) -> Played:
    """Joins a method with networks at a cycle.

    Args:
      method: the method.
      step: the cycle.
      phase: name of the phase.
      batch_size: samples.
      same: roles that keep the teacher's parameters.
      given: parameters by role in place of those of `params_of`.
      data: fields in place of the batch's.
      memory: entries in place of the method's initial ones.
      **networks: by key, in place of those of `cases`.
    """
    nets = cases.networks(**networks)
    config = TrainConfig.of({"batch_size": batch_size})
    setup = make_setup(method, nets, config, cases.SHAPE)
    params = {**params_of(method, setup.networks, same), **(given or {})}
    state = TrainState(
        params={k: v for k, v in params.items() if k != "teacher"},
        opt={},
        ema={},
        memory={},
        step=jnp.asarray(step),
        counters={},
        key=jax.random.key(2),
    )
    (found,) = [p for p in method.phases_at(step) if p.name == phase]
    frozen = {"teacher": params["teacher"]} if "teacher" in params else {}
    start = method.memory(batch_size, cases.SHAPE) if method.memory else {}
    memory = {**start, **(memory or {})}
    batch = {k: v[0, 0] for k, v in cases.batch(1, batch_size).items()}
    return Played(
        Update(setup, found, state, frozen, {}),
        {role: params[role] for role in found.trains},
        {**batch, **(data or {})},
        memory,
    )


def exact_jumper(oracle: Gaussian, path: Path) -> Network:
    """The exact map of a Gaussian to the data, as a one-time network."""
    output = oracle.affine_map(path).output
    sd = path.sigma_d

    def apply(params, x, t, cond=None, s=None, **options):
        return output(x * sd, t, jnp.zeros_like(t)) / sd

    return Network("exact jumper", apply, lambda key: {}, path, "velocity")


@dataclasses.dataclass(frozen=True)
class ExactStep:
    """The exact flow map of a Gaussian as a solver of the teacher's steps."""

    order = 1
    kind = "velocity"
    noisy = False

    def evaluations(self, steps):
        return steps

    def step(self, ode, at):
        return exact.gaussian().flow_map(ode.path)(at.x, at.t, at.s), at.last


def vanishes(gradients: Any, tol: float = 0.0) -> None:
    """Asserts that no element is larger than ``tol``."""
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)) <= tol
