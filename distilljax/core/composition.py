"""`compose`: methods joined so that the student's gradient is exactly the weighted sum.

Every method brings its own terms, draws, critics and memory. What two of them say alike
is shared, what they say differently about a thing of one name stands twice, the later
one's under the name of its method; only the student is one, and what cannot be said of
one student is refused with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distilljax.core.method import (
    Citation,
    Method,
    Phase,
    Role,
    Sampling,
    Stage,
    Term,
    check,
)
from distilljax.core.renaming import Names, renamed, renamed_phase
from distilljax.diffusion.times import Product, Schedule, value_at
from distilljax.runtime.errors import unknown

STUDENT = "student"


def compose(
    *methods: Method,
    weights: Mapping[str, Schedule] | None = None,
    repeats: Mapping[str, int] | None = None,
    roles: Mapping[str, Role] | None = None,
    draws: Mapping[str, Any] | None = None,
    rename: Mapping[str, Mapping[str, str]] | None = None,
    sampling: Sampling | None = None,
    name: str | None = None,
    cite: tuple[Citation, ...] = (),
) -> Method:
    """Joins methods; the student's gradient is exactly the weighted sum of theirs.

    Student: one, that starts from the teacher if any method's does, with a network that
    has what each of them needs. Its terms and draws stand side by side in one update.

    Roles that nothing trains (teacher, target, decoder): equal ones are one. A teacher
    that follows the student (``progressive``) stands beside the fixed one.

    Critics (roles that a phase without the student trains): methods share them if they
    fit them alike, that is if draws and terms of one name are equal in their phases;
    the terms that only one of them has come on top, and of two numbers of repeats the
    larger holds. Otherwise each method has critics of its own: a fake score is that of
    the samples it was fitted to.

    What two methods have under one name and not alike is found under the name of the
    later one: terms, draws and phases as ``"ladd/fool"``, roles and memory as
    ``ladd_discriminator``. Random numbers are keyed without it, so that joining changes
    nobody's; two terms of one name draw the same numbers, as two methods of one seed
    do. Weights multiply the terms of phases that train the student, and the result of a
    phase's ``merge``; critics keep theirs.

    Args:
      *methods: at least one, of different names; the first one's sampling is the
        default.
      weights: method name -> number or schedule over cycles.
      repeats: phase name -> repeats, in place of the methods'.
      roles: role name -> record, in place of the methods'.
      draws: draw name -> draw, in place of the methods'; with
        ``{"x": draws.Rollout(...)}`` methods judge the same samples and may share a
        fake score.
      rename: method name -> new names of its roles by old ones; a role under a name of
        its own is not shared.
      sampling: how the student is sampled.
      name: name of the result; default the names joined by "+".
      cite: citations of the composition itself, put first.

    Returns:
      The method.

    Raises:
      ValueError: on methods of one name, unknown names in the arguments, and students
        that cannot be one.
    """
    if not methods:
        raise ValueError("compose needs at least one method")
    weights, repeats = dict(weights or {}), dict(repeats or {})
    names = [method.name for method in methods]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(
            f"compose: two methods are called {twice[0]!r}; their weights and critics "
            "are told apart by name, so give one another: method._replace(name=...)"
        )
    for label, given in (("weights", weights), ("rename", rename or {})):
        for key in given:
            if key not in names:
                raise ValueError(unknown(f"method in {label}", key, names))
    parts = [
        _given(_weighted(m, weights.get(m.name, 1.0)), roles or {}, draws or {})
        for m in methods
    ]
    parts = [_called(part, (rename or {}).get(part.name, {})) for part in parts]
    parts = _apart_from_fixed_teacher(parts)
    out = parts[0]
    for part in parts[1:]:
        out = _join(out, part, repeats)
    _check_known("role in roles", roles or {}, out.roles)
    every = [p for phases in _rounds(out) for p in phases]
    _check_known("draw in draws", draws or {}, {n for p in every for n in p.draws})
    _check_known("phase in repeats", repeats, {p.name for p in every})
    return check(
        out._replace(
            name=out.name if name is None else name,
            sampling=out.sampling if sampling is None else sampling,
            cite=tuple(dict.fromkeys(tuple(cite) + out.cite)),
        )
    )


def _check_known(label: str, given: Mapping[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            raise ValueError(unknown(label, key, known))


def _rounds(method: Method) -> Iterator[tuple[Phase, ...]]:
    """The phases of every stage and those after them."""
    yield from (stage.phases for stage in method.stages)
    yield method.phases


def _mapped(method: Method, change: Callable[[Phase], Phase]) -> Method:
    """The method with every phase changed."""
    return method._replace(
        phases=tuple(change(p) for p in method.phases),
        stages=tuple(
            Stage(s.until, tuple(change(p) for p in s.phases)) for s in method.stages
        ),
    )


# What is given or changed before methods meet.


def _scaled(term: Term, weight: Schedule) -> Term:
    if isinstance(weight, (int, float)) and weight == 1:
        return term
    if isinstance(weight, (int, float)) and isinstance(term.weight, (int, float)):
        return term._replace(weight=weight * term.weight)
    return term._replace(weight=Product(weight, term.weight))


def _weighted(method: Method, weight: Schedule) -> Method:
    """Student phases carry the method's weight; critics fit, and do not."""

    def change(phase: Phase) -> Phase:
        if STUDENT not in phase.trains:
            return phase
        if phase.merge is not None:
            return phase._replace(merge=_Scaled(phase.merge, weight))
        return phase._replace(terms=tuple(_scaled(t, weight) for t in phase.terms))

    return _mapped(method, change)


def _given(
    method: Method, roles: Mapping[str, Role], draws: Mapping[str, Any]
) -> Method:
    """The method with the caller's roles and draws in place of its own."""

    def change(phase: Phase) -> Phase:
        return phase._replace(
            draws={n: draws.get(n, d) for n, d in phase.draws.items()}
        )

    own = {
        n: roles[n]._replace(needs=roles[n].needs | r.needs) if n in roles else r
        for n, r in method.roles.items()
    }
    return _mapped(method._replace(roles=own), change)


def _called(method: Method, roles: Mapping[str, str]) -> Method:
    """The method with the caller's names; a phase is called after what it trains."""
    for old in roles:
        if old not in method.roles or old == STUDENT:
            known = [role for role in method.roles if role != STUDENT]
            raise ValueError(unknown(f"role of {method.name!r} in rename", old, known))
    phases = {
        p.name: roles[p.name] for ps in _rounds(method) for p in ps if p.name in roles
    }
    return renamed(method, Names(roles, phases)) if roles else method


def _apart_from_fixed_teacher(methods: Sequence[Method]) -> list[Method]:
    """Teachers that follow something get names of their own beside a fixed one."""
    teachers = [m.roles["teacher"] for m in methods if "teacher" in m.roles]
    if all(role.follow is None for role in teachers) or all(
        role.follow is not None for role in teachers
    ):
        return list(methods)
    out = []
    for method in methods:
        role = method.roles.get("teacher")
        if role is not None and role.follow is not None:
            name = f"{method.name}_teacher"
            method = renamed(method, Names({"teacher": name}))
            own = method.roles[name]._replace(init="teacher")
            method = method._replace(roles={**method.roles, name: own})
        out.append(method)
    return out


# Two methods.


class _Pair(NamedTuple):
    """Two methods that meet, and what the later one has under names of its own."""

    a: Method
    b: Method
    names: Names

    def rounds(self) -> Iterator[tuple[tuple[Phase, ...], tuple[Phase, ...]]]:
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
        for first, second in self.rounds():
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

    def rest(self, x: Phase, y: Phase) -> Phase:
        """What the later method adds to a phase of the other, under its new names."""
        terms = {term.name: term for term in x.terms}
        critic = STUDENT not in y.trains
        return renamed_phase(
            y._replace(
                draws={
                    name: draw
                    for name, draw in y.draws.items()
                    if name not in x.draws or not self.same(x.draws[name], draw)
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


def _join(a: Method, b: Method, repeats: Mapping[str, int]) -> Method:
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
            for name in phase.draws
            if name in first.draws
            and not pair.same(first.draws[name], phase.draws[name])
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
        for phases in _rounds(method):
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
    starts = [
        start for start in ("teacher", x.init, y.init) if start in (x.init, y.init)
    ]
    known = [start for start in starts if start != "random"] or ["random"]
    if len(set(known)) > 1 and "teacher" not in known:
        raise ValueError(
            f"compose: the student starts from {x.init!r} in {a.name!r} and from "
            f"{y.init!r} in {b.name!r}; say which with roles={{'student': ...}}"
        )
    return x._replace(init=known[0])


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
class _Scaled:
    """A merged gradient times the weight of its method."""

    merge: Callable[..., Any]
    weight: Schedule

    def __call__(self, gradients: Mapping[str, Any], step: jax.Array) -> Any:
        weight = value_at(self.weight, step)
        merged = self.merge(gradients, step)
        return jax.tree.map(lambda g: jnp.asarray(weight, g.dtype) * g, merged)


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
