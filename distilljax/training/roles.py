"""Roles joined with networks, optimizers and devices: what a program is built from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from distilljax.core.binding import Network
from distilljax.core.method import Method, Phase, Role
from distilljax.runtime.errors import unknown
from distilljax.training.config import TrainConfig
from distilljax.training.placement import (
    ROWS,
    make_mesh,
    put,
    rows,
    sharding,
    tree_shardings,
)

MENDS = {
    "jvp": (
        "use a network without custom_vjp (attention that jax.jvp can go through), or "
        "derivative=losses.finite_difference() of a method that takes it"
    ),
    "taps": "return intermediate features for taps=True and list 'taps'",
    "second_time": "build it with a second time input (second_time=True)",
    "null": "give it a null condition (null=) and train it with condition dropout",
    "guidance": "let it take a guidance scale (guidance=(0.1, 1000.0, 128))",
    "dropout": "let apply take rng= and list 'dropout'",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """Everything static that the programs of a run share.

    Attributes:
      method: the method.
      networks: network by role.
      optimizers: by trained role.
      config: the training config.
      sample_shape: shape of one sample.
      mesh: mesh of the run; None on one device.
      batch: shapes of the batch of a cycle, by field.
    """

    method: Method
    networks: Mapping[str, Network]
    optimizers: Mapping[str, optax.GradientTransformation]
    config: TrainConfig
    sample_shape: tuple[int, ...]
    mesh: Mesh | None = None
    batch: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def with_dropout(self) -> frozenset[str]:
        """Roles in training mode: trained ones, or derived from those, with dropout."""
        trained = set(self.method.trained)

        def trains(name: str) -> bool:
            derive = self.method.roles[name].derive
            return not trained.isdisjoint({name, *getattr(derive, "reads", ())})

        return frozenset(
            name
            for name, network in self.networks.items()
            if "dropout" in network.capabilities and trains(name)
        )

    @property
    def stacked(self) -> int:
        """Microbatches in which the loader delivers a batch."""
        return self.config.stacked(self.method.trained)

    def accumulate(self, phase: Phase) -> int:
        """Microbatches of an update of a phase."""
        return max((self.config.role(r).accumulate for r in phase.trains), default=1)

    def constrain(self, x: jax.Array) -> jax.Array:
        """Places an array with batch first on the batch axes of the mesh."""
        if self.mesh is None or x.ndim == 0 or x.shape[0] % rows(self.mesh):
            return x
        return put(x, sharding(self.mesh, ROWS))

    def around(self) -> AbstractContextManager[Any]:
        """Sets the mesh while a program is traced; networks split their batch by it."""
        if self.mesh is None:
            return contextlib.nullcontext()
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    @property
    def replicated(self) -> NamedSharding | None:
        """Sharding of what every device holds; None without a mesh."""
        return None if self.mesh is None else sharding(self.mesh)

    def shardings(self, role: str, tree: Any) -> Any:
        """Shardings of a role's parameters or of a mirror of them; None without a mesh.

        Raises:
          ValueError: see `placement.placed`.
        """
        leader = role
        while (rule := self.method.roles[leader].follow) is not None:
            if leader in self.method.trained:
                break
            leader = rule.of
        trained = leader in self.method.trained
        section = self.config.role(leader) if trained else self.config.frozen
        return tree_shardings(self.mesh, tree, section.placement)

    def placed(self, role: str, tree: Any) -> Any:
        """A role's gradients where its parameters live, so that they are summed there.

        Without it every device would hold the whole sum first.
        """
        if self.mesh is None:
            return tree
        return put(tree, self.shardings(role, tree))


def run_mesh(config: TrainConfig) -> Mesh | None:
    """Mesh of a config; None for one device in one process."""
    if config.devices == 1 and jax.process_count() == 1:
        return None
    return make_mesh(config.mesh)


def network_of(
    roles: Mapping[str, Role], role: str, networks: Mapping[str, Network]
) -> Network:
    """The network of a role: one under its own name, else the one that it names.

    Raises:
      ValueError: if neither is there.
    """
    network = networks.get(role, networks.get(roles[role].network))
    if network is None:
        raise ValueError(
            f"role {role!r}: " + unknown("network", roles[role].network, networks)
        )
    return network


def join(
    roles: Mapping[str, Role], networks: Mapping[str, Network]
) -> dict[str, Network]:
    """Networks by role, see `network_of`.

    Raises:
      ValueError: if a network is missing, or lacks what its role needs; names the
        network and the mend.
    """
    joined = {}
    for name, role in roles.items():
        network = network_of(roles, name, networks)
        missing = sorted(role.needs - network.capabilities)
        if missing:
            mends = "; ".join(f"{m}: {MENDS[m]}" for m in missing if m in MENDS)
            has = ", ".join(sorted(network.capabilities)) or "none of them"
            raise ValueError(
                f"role {name!r} needs a network with {', '.join(missing)}, and "
                f"{network.name!r} has {has}. {mends}"
            )
        joined[name] = network
    return joined


def updates_of(method: Method, role: str, cycles: int) -> int:
    """Updates that a role gets in a run of so many cycles."""
    total, start = 0, 0
    parts = [*method.stages, (cycles, method.phases)]
    for until, phases in parts:
        length = max(min(until, cycles) - start, 0)
        total += length * sum(p.repeat for p in phases if role in p.trains)
        start = max(start, min(until, cycles))
    return total


def make_setup(
    method: Method,
    networks: Mapping[str, Network],
    config: TrainConfig,
    sample_shape: tuple[int, ...],
    mesh: Mesh | None = None,
    batch: Mapping[str, Any] | None = None,
) -> Setup:
    """Joins roles and networks and builds the optimizers; see `Setup`."""
    return Setup(
        method=method,
        networks=join(method.roles, networks),
        optimizers={
            role: config.role(role).build(updates_of(method, role, config.cycles))
            for role in method.trained
        },
        config=config.checked(method.roles),
        sample_shape=tuple(sample_shape),
        mesh=mesh,
        batch=dict(batch or {}),
    )
