"""A method under other names, so that two methods can stand side by side.

Terms, draws and collect functions name the roles and data that they read. Under other
names they are handed a context in which their own names still work, so that the loss of
a paper needs to know nothing of what it is joined with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from distilljax.core.context import Context
from distilljax.core.method import Method, Out, Phase, Role, Term

Pairs = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Names:
    """New names by old ones; what is not there keeps its name.

    Attributes:
      roles: of players.
      phases: of phases.
      terms: of terms, in all phases.
      data: of draws and of what phases collect.
      memory: of memory entries.
    """

    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    phases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    terms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Within:
    """A function of a context that is handed its own names for roles, data, memory."""

    function: Callable[[Context], Any]
    roles: Pairs
    data: Pairs
    memory: Pairs
    collects: bool = False

    def __call__(self, ctx: Context) -> Any:
        out = self.function(ctx.under(self.roles, self.data, self.memory))
        if isinstance(out, Out):
            out = out._replace(memory=_keys(out.memory, self.memory))
        if not self.collects:
            return out
        if isinstance(out, Out):
            values: Any = out.values
            return out._replace(values=_keys(values, self.data))
        return _keys(out, self.data)


@dataclasses.dataclass(frozen=True)
class _Derived:
    """`Role.derive` that reads roles under their old names."""

    derive: Callable[[Mapping[str, Any], jax.Array], Any]
    roles: Pairs

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes, by their new names."""
        names = dict(self.roles)
        return tuple(names.get(name, name) for name in self.derive.reads)  # type: ignore[attr-defined]

    def __call__(self, params: Mapping[str, Any], step: jax.Array) -> Any:
        own = {old: params[new] for old, new in self.roles if new in params}
        return self.derive({**params, **own}, step)


@dataclasses.dataclass(frozen=True)
class _Merged:
    """`Phase.merge` of terms under their old names."""

    merge: Callable[[Mapping[str, Any], jax.Array], Any]
    terms: Pairs

    def __call__(self, gradients: Mapping[str, Any], step: jax.Array) -> Any:
        old = {new: name for name, new in self.terms}
        return self.merge({old.get(n, n): g for n, g in gradients.items()}, step)


@dataclasses.dataclass(frozen=True)
class _Remembered:
    """`Method.memory` under new names."""

    memory: Callable[[int, tuple[int, ...]], Mapping[str, Any]]
    names: Pairs

    def __call__(
        self, batch_size: int, sample_shape: tuple[int, ...]
    ) -> dict[str, Any]:
        return _keys(self.memory(batch_size, sample_shape), self.names)


def _keys(values: Mapping[str, Any], names: Pairs) -> dict[str, Any]:
    new = dict(names)
    return {new.get(name, name): value for name, value in values.items()}


def _within(
    function: Callable[[Context], Any], names: Names, collects: bool = False
) -> Any:
    roles, data, memory = map(_pairs, (names.roles, names.data, names.memory))
    if not (roles or data or memory):
        return function
    return _Within(function, roles, data, memory, collects)


def _pairs(names: Mapping[str, str]) -> Pairs:
    return tuple(sorted(names.items()))


def renamed_phase(phase: Phase, names: Names) -> Phase:
    """A phase under other names, see `renamed`."""

    def term(found: Term) -> Term:
        mask = found.mask
        return found._replace(
            name=names.terms.get(found.name, found.name),
            loss=_within(found.loss, names),
            mask=None if mask is None else names.data.get(mask, mask),
        )

    collect, merge = phase.collect, phase.merge
    own = {t.name: names.terms[t.name] for t in phase.terms if t.name in names.terms}
    if merge is not None and own:
        merge = _Merged(merge, _pairs(own))
    return phase._replace(
        name=names.phases.get(phase.name, phase.name),
        trains=tuple(names.roles.get(role, role) for role in phase.trains),
        terms=tuple(term(t) for t in phase.terms),
        draws={
            names.data.get(name, name): _within(draw, names)
            for name, draw in phase.draws.items()
        },
        collect=None if collect is None else _within(collect, names, True),
        merge=merge,
    )


def _renamed_role(role: Role, names: Names) -> Role:
    def new(name: str) -> str:
        return names.roles.get(name, name)

    follow, derive = role.follow, role.derive
    if follow is not None:
        after = follow.after
        after = None if after is None else names.phases.get(after, after)
        follow = follow._replace(of=new(follow.of), after=after)
    if derive is not None and names.roles:
        derive = _Derived(derive, _pairs(names.roles))
    return role._replace(init=new(role.init), follow=follow, derive=derive)


def renamed(method: Method, names: Names) -> Method:
    """The method under other names; its gradients are the same.

    Args:
      method: any.
      names: the new names. The part of a name before its last "/" is no part of the key
        of a phase, term or draw, so that under ``"method/name"`` they draw the same
        random numbers as under ``"name"``.

    Returns:
      The method. The role of its `Sampling` is renamed too.
    """
    if not any(dataclasses.astuple(names)):
        return method
    memory, role = method.memory, method.sampling.role
    if memory is not None and names.memory:
        memory = _Remembered(memory, _pairs(names.memory))
    return method.with_phases(lambda p: renamed_phase(p, names))._replace(
        roles={
            names.roles.get(name, name): _renamed_role(role, names)
            for name, role in method.roles.items()
        },
        memory=memory,
        sampling=dataclasses.replace(method.sampling, role=names.roles.get(role, role)),
    )
