"""`compose`: methods joined so that the student's gradient is exactly the weighted sum.

Every method brings its own terms, draws, critics and memory. What two of them say alike
is shared, what they say differently about a thing of one name stands twice, the later
one's under the name of its method; only the student is one, and what cannot be said of
one student is refused with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distilljax.core.joining import STUDENT, join
from distilljax.core.method import (
    Citation,
    Method,
    Phase,
    Role,
    Sampling,
    Term,
    check,
)
from distilljax.core.renaming import Names, renamed
from distilljax.diffusion.times import Product, Schedule, value_at
from distilljax.runtime.errors import unknown


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
        out = join(out, part, repeats)
    _check_known("role in roles", roles or {}, out.roles)
    every = [p for phases in out.rounds for p in phases]
    _check_known("draw in draws", draws or {}, {n for p in every for n in p.draws})
    _check_known("phase in repeats", repeats, {p.name for p in every})
    out = out.with_phases(lambda p: p._replace(repeat=repeats.get(p.name, p.repeat)))
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


# What is given or changed before methods meet.


def _scaled(term: Term, weight: Schedule) -> Term:
    if isinstance(weight, (int, float)) and isinstance(term.weight, (int, float)):
        return term._replace(weight=weight * term.weight)
    return term._replace(weight=Product(weight, term.weight))


def _weighted(method: Method, weight: Schedule) -> Method:
    """Student phases carry the method's weight; critics fit, and do not."""
    if isinstance(weight, (int, float)) and weight == 1:
        return method

    def change(phase: Phase) -> Phase:
        if STUDENT not in phase.trains:
            return phase
        if phase.merge is not None:
            return phase._replace(merge=_Scaled(phase.merge, weight))
        return phase._replace(terms=tuple(_scaled(t, weight) for t in phase.terms))

    return method.with_phases(change)


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
    return method._replace(roles=own).with_phases(change)


def _called(method: Method, roles: Mapping[str, str]) -> Method:
    """The method with the caller's names; a phase is called after what it trains."""
    for old in roles:
        if old not in method.roles or old == STUDENT:
            known = [role for role in method.roles if role != STUDENT]
            raise ValueError(unknown(f"role of {method.name!r} in rename", old, known))
    phases = {
        p.name: roles[p.name] for ps in method.rounds for p in ps if p.name in roles
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


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """A merged gradient times the weight of its method."""

    merge: Callable[..., Any]
    weight: Schedule

    def __call__(self, gradients: Mapping[str, Any], step: jax.Array) -> Any:
        weight = value_at(self.weight, step)
        merged = self.merge(gradients, step)
        return jax.tree.map(lambda g: jnp.asarray(weight, g.dtype) * g, merged)
