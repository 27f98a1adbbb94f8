"""Two methods that become one: what they share, and whose name the rest goes by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from distilljax.core.method import Method, Phase, Role, Stage, Term
from distilljax.core.renaming import Names, renamed, renamed_phase

STUDENT = "student"


class _Pair(NamedTuple):
    """Two methods that meet, and what the later one has under names of its own."""

    a: Method
    b: Method
    names: Names

    def both(self) -> Iterator[tuple[tuple[Phase, ...], tuple[Phase, ...]]]:
        """Phases of both in every stage of either, and after them."""
        for until in (*self.untils, None):
            yield self.at(until)

    @property
    def untils(self) -> list[int]:
        """Cycles at which phases of one of them change."""
        return sorted({stage.until for m in (self.a, self.b) for stage in m.stages})

    def at(self, until: int | None) -> tuple[tuple[Phase, ...], tuple[Phase, ...]]:
        """Phases of both before a cycle, None for those after all stages."""
        if until is None:
            return self.a.phases, self.b.phases
        return self.a.phases_at(until - 1), self.b.phases_at(until - 1)

    def matched(self) -> Iterator[tuple[Phase, Phase]]:
        """Phases of both that have one name."""
        for first, second in self.both():
            known = {phase.name: phase for phase in first}
            for phase in second:
                if self.names.phases.get(phase.name, phase.name) in known:
                    yield known[phase.name], phase

    def same(self, x: Any, y: Any) -> bool:
        """Whether functions of both are one: equal, and reading nothing of one alone.

        ``reads`` of a frozen dataclass says which roles it takes beside the student;
        without it a function may take any.
        """
        reads = getattr(y, "reads", None)
        own = set(self.names.roles)
        return x == y and (not own or (reads is not None and not own & set(reads)))

    def same_fit(self, x: Term, y: Term) -> bool:
        """Whether a critic learns one thing from two terms."""
        return x._replace(loss=None) == y._replace(loss=None) and self.same(
            x.loss, y.loss
        )

    def fitted_alike(self, x: Phase, y: Phase) -> bool:
        """Whether the critics of two phases can be one."""
        terms = {term.name: term for term in x.terms}
        common = [term for term in y.terms if term.name in terms]
        draws = set(x.draws) & set(y.draws)
        return (
            bool(common)
            and all(self.same_fit(terms[term.name], term) for term in common)
            and all(self.same(x.draws[name], y.draws[name]) for name in draws)
            and (x.fresh, x.merge, x.collect) == (y.fresh, y.merge, y.collect)
        )

    def own_draws(self, x: Phase, y: Phase) -> set[str]:
        """Draws of both names that the later method makes for itself.

        A draw may read those before it, so that after one that differs none is shared.
        """
        own: set[str] = set()
        for name, draw in y.draws.items():
            if name in x.draws and (own or not self.same(x.draws[name], draw)):
                own.add(name)
        return own

    def rest(self, x: Phase, y: Phase) -> Phase:
        """What the later method adds to a phase of the other, under its new names."""
        own = self.own_draws(x, y)
        terms = {term.name: term for term in x.terms}
        critic = STUDENT not in y.trains
        return renamed_phase(
            y._replace(
                draws={
                    name: draw
                    for name, draw in y.draws.items()
                    if name not in x.draws or name in own
                },
                terms=tuple(
                    term
                    for term in y.terms
                    if not critic
                    or term.name not in terms
                    or not self.same_fit(terms[term.name], term)
                ),
            ),
            self.names,
        )


def join(a: Method, b: Method, repeats: Mapping[str, int]) -> Method:
    """The method of both; see `compose` for the rules.

    Args:
      a: its names and its sampling stay.
      b: goes by names of its own where the two differ.
      repeats: phase name -> repeats, in place of the methods'.

    Raises:
      ValueError: if the two have no common student or update.
    """
    pair = _Pair(a, b, _names_beside(a, b))
    other = renamed(b, pair.names)

    def phases(until: int | None) -> tuple[Phase, ...]:
        """Phases of one name become one; the later method's others run before."""
        first, second = pair.at(until)
        added = {pair.names.phases.get(p.name, p.name): p for p in second}
        own = {phase.name for phase in first}
        before = (
            renamed_phase(p, pair.names) for n, p in added.items() if n not in own
        )
        joined = (
            _join_phase(p, pair.rest(p, added[p.name]), added[p.name].repeat, repeats)
            if p.name in added
            else p
            for p in first
        )
        return (*before, *joined)

    return Method(
        name=f"{a.name}+{b.name}",
        roles=_join_roles(a, other),
        phases=phases(None),
        batch=a.batch | b.batch,
        sampling=a.sampling,
        memory=_join_memory(a.memory, other.memory),
        stages=tuple(Stage(until, phases(until)) for until in pair.untils),
        cite=tuple(dict.fromkeys(a.cite + b.cite)),
    )


def _names_beside(a: Method, b: Method) -> Names:
    """Names under which the later method's own things do not meet the other's."""
    common = (set(a.roles) & set(b.roles)) - {STUDENT}
    own = {name for name in common if not _alike(a.roles[name], b.roles[name])}
    trained = common & (set(a.trained) | set(b.trained))
    clashing: set[str] = set()
    while True:
        pair = _Pair(a, b, _named(b, own, clashing))
        # A critic is shared if all phases of one name that train it fit it alike.
        apart = {
            phase.name
            for first, phase in pair.matched()
            if STUDENT not in phase.trains and not pair.fitted_alike(first, phase)
        }
        shared = _trained_together(pair, apart | clashing)
        more = trained - shared
        more |= {n for n in common if _leans_on(b.roles[n], own | more)}
        if more <= own and apart <= clashing:
            break
        own, clashing = own | more, clashing | apart
    return _named(
        b,
        own,
        clashing,
        terms={
            term.name
            for first, phase in pair.matched()
            for term in pair.rest(first, phase).terms
            if term.name in {t.name for t in first.terms}
        },
        data={
            name
            for first, phase in pair.matched()
            for name in pair.own_draws(first, phase)
        },
        memory=_entries(a) & _entries(b),
    )


def _trained_together(pair: _Pair, apart: set[str]) -> set[str]:
    """Roles that both methods train, and in shared phases of critics alone."""
    together = [
        (first, second)
        for first, second in pair.matched()
        if STUDENT not in second.trains and second.name not in apart
    ]
    found = {role for x, y in together for role in x.trains if role in y.trains}
    names = [{phase.name for phase in side} for side in zip(*together, strict=True)]
    for method, known in zip((pair.a, pair.b), names or [set(), set()], strict=True):
        for phases in method.rounds:
            for phase in phases:
                if phase.name not in known:
                    found -= set(phase.trains)
    return found


def _named(
    method: Method,
    roles: Iterable[str],
    phases: Iterable[str],
    *,
    terms: Iterable[str] = (),
    data: Iterable[str] = (),
    memory: Iterable[str] = (),
) -> Names:
    """Names that say whose a thing is."""

    def slash(names: Iterable[str]) -> dict[str, str]:
        return {name: f"{method.name}/{name}" for name in names}

    def under(names: Iterable[str]) -> dict[str, str]:
        return {name: f"{method.name}_{name}" for name in names}

    return Names(under(roles), slash(phases), slash(terms), slash(data), under(memory))


def _entries(method: Method) -> set[str]:
    """Names of the memory of a method."""
    if method.memory is None:
        return set()
    return set(jax.eval_shape(lambda: dict(method.memory(2, (2,)))))


def _alike(a: Role, b: Role) -> bool:
    """Whether two roles are one that has what both need."""
    return a._replace(needs=frozenset()) == b._replace(needs=frozenset())


def _leans_on(role: Role, names: set[str]) -> bool:
    """Whether a role starts from, follows or is made from one of these."""
    reads = set(getattr(role.derive, "reads", ()))
    followed = set() if role.follow is None else {role.follow.of}
    return bool(names & ({role.init} | followed | reads))


def _join_roles(a: Method, b: Method) -> dict[str, Role]:
    """Roles of both; what equal ones need of their network is united."""
    out = dict(a.roles)
    for name, role in b.roles.items():
        before = out.get(name)
        if before is None:
            out[name] = role
            continue
        if name == STUDENT:
            before = _one_student(a, b)
        out[name] = before._replace(needs=before.needs | role.needs)
    return out


def _one_student(a: Method, b: Method) -> Role:
    """The student that both methods train.

    Raises:
      ValueError: if no network can be both.
    """
    x, y = a.roles[STUDENT], b.roles[STUDENT]
    for field, reason in (
        ("network", "their outputs mean different things, so no network is both"),
        ("follow", "a student that follows another role in one method is free in none"),
        (
            "derive",
            "a student that is made of other roles has no parameters of its own",
        ),
    ):
        if getattr(x, field) != getattr(y, field):
            raise ValueError(
                f"compose: {field} of the student differs, {getattr(x, field)!r} in "
                f"{a.name!r} and {getattr(y, field)!r} in {b.name!r}: {reason}; give "
                "one record for both with roles={'student': ...} if they are one"
            )
    starts = {x.init, y.init} - {"random"} or {"random"}
    start = "teacher" if "teacher" in starts else starts.pop()
    if start != "teacher" and starts:
        raise ValueError(
            f"compose: the student starts from {x.init!r} in {a.name!r} and from "
            f"{y.init!r} in {b.name!r}; say which with roles={{'student': ...}}"
        )
    return x._replace(init=start)


def _join_phase(a: Phase, b: Phase, repeat: int, repeats: Mapping[str, int]) -> Phase:
    if a.name in repeats:
        repeat = repeats[a.name]
    elif STUDENT not in (*a.trains, *b.trains):
        repeat = max(a.repeat, repeat)
    elif a.repeat != repeat:
        raise ValueError(
            f"compose: phase {a.name!r} trains the student {a.repeat} and {repeat} "
            f"times a cycle, so that no one update has the sum of the gradients; say "
            f"which with repeats={{{a.name!r}: n}}"
        )
    if a.fresh != b.fresh:
        raise ValueError(
            f"compose: phase {a.name!r} takes a fresh batch in one method and that of "
            "the phase before it in the other"
        )
    if a.collect is not None and b.collect is not None:
        raise ValueError(f"compose: phase {a.name!r} collects in both methods")
    return a._replace(
        trains=tuple(dict.fromkeys(a.trains + b.trains)),
        terms=a.terms + b.terms,
        draws={**a.draws, **b.draws},
        collect=b.collect if a.collect is None else a.collect,
        repeat=repeat,
        merge=_join_merge(a, b),
    )


def _join_merge(a: Phase, b: Phase) -> Callable[..., Any] | None:
    if a.merge is None and b.merge is None:
        return None
    if not b.terms:
        return a.merge
    return _Sum(tuple((p.merge, tuple(t.name for t in p.terms)) for p in (a, b)))


@dataclasses.dataclass(frozen=True)
class _Sum:
    """Sum of what two methods make of the gradients of their own terms."""

    parts: tuple[tuple[Callable[..., Any] | None, tuple[str, ...]], ...]

    def __call__(self, gradients: Mapping[str, Any], step: jax.Array) -> Any:
        found = []
        for merge, names in self.parts:
            own = {name: gradients[name] for name in names}
            found += list(own.values()) if merge is None else [merge(own, step)]
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *found)


@dataclasses.dataclass(frozen=True)
class _JoinedMemory:
    a: Callable[[int, tuple[int, ...]], Mapping[str, Any]]
    b: Callable[[int, tuple[int, ...]], Mapping[str, Any]]

    def __call__(
        self, batch_size: int, sample_shape: tuple[int, ...]
    ) -> dict[str, Any]:
        return {
            **self.a(batch_size, sample_shape),
            **self.b(batch_size, sample_shape),
        }


def _join_memory(a, b):
    if a is None or b is None:
        return a if b is None else b
    return _JoinedMemory(a, b)
