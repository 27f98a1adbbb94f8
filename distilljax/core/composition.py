"""`compose`: methods joined so that the student's gradient is exactly the weighted sum.

Phases meet by name, terms and draws keep their own randomness, and whatever two methods
say differently about one thing is refused by name instead of decided silently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

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
from distilljax.diffusion.times import Product, Schedule
from distilljax.runtime.errors import unknown


def _scaled(term: Term, weight: Schedule) -> Term:
    if isinstance(weight, (int, float)) and weight == 1:
        return term
    if isinstance(weight, (int, float)) and isinstance(term.weight, (int, float)):
        return term._replace(weight=weight * term.weight)
    return term._replace(weight=Product(weight, term.weight))


def _weighted(phase: Phase, weight: Schedule) -> Phase:
    """Student phases carry the method's weight; critics fit, and do not."""
    if "student" not in phase.trains:
        return phase
    return phase._replace(terms=tuple(_scaled(t, weight) for t in phase.terms))


def _merge_equal(
    kind: str, a: Mapping[str, Any], b: Mapping[str, Any]
) -> dict[str, Any]:
    out = dict(a)
    for name, value in b.items():
        if name in out and out[name] != value:
            raise ValueError(
                f"compose: {kind} {name!r} differs between the methods: {out[name]} "
                f"and {value}; make them equal to share it, or rename one"
            )
        out[name] = value
    return out


def _merge_roles(a: Mapping[str, Role], b: Mapping[str, Role]) -> dict[str, Role]:
    """Equal roles merge, and what they need of their network is united."""
    shared = set(a) & set(b)
    needs = {name: a[name].needs | b[name].needs for name in shared}
    return _merge_equal(
        "role",
        {n: r._replace(needs=needs[n]) if n in shared else r for n, r in a.items()},
        {n: r._replace(needs=needs[n]) if n in shared else r for n, r in b.items()},
    )


def _same_fit(phase: Phase, term: Term) -> bool:
    """Whether a critic's phase has the term already: one critic is fitted once."""
    return "student" not in phase.trains and term in phase.terms


def _merge_phase(a: Phase, b: Phase, repeats: Mapping[str, int]) -> Phase:
    if a.repeat != b.repeat and a.name not in repeats:
        raise ValueError(
            f"compose: phase {a.name!r} repeats {a.repeat} and {b.repeat} times; say "
            f"which with repeats={{{a.name!r}: n}}"
        )
    if a.fresh != b.fresh:
        raise ValueError(f"compose: phase {a.name!r} takes a fresh batch in one only")
    merges = {m for m in (a.merge, b.merge) if m is not None}
    collects = {c for c in (a.collect, b.collect) if c is not None}
    if len(merges) > 1 or len(collects) > 1:
        raise ValueError(
            f"compose: phase {a.name!r} has two merge or collect functions"
        )
    terms = a.terms + tuple(t for t in b.terms if not _same_fit(a, t))
    names = [t.name for t in terms]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(
            f"compose: phase {a.name!r} has terms of one name twice: {twice}; "
            "randomness is keyed by name, so rename one where it is built"
        )
    return Phase(
        name=a.name,
        trains=tuple(dict.fromkeys(a.trains + b.trains)),
        terms=terms,
        draws=_merge_equal("draw", a.draws, b.draws),
        collect=next(iter(collects), None),
        repeat=repeats.get(a.name, a.repeat),
        fresh=a.fresh,
        merge=next(iter(merges), None),
    )


def _compose_phases(
    a: tuple[Phase, ...], b: tuple[Phase, ...], repeats: Mapping[str, int]
) -> tuple[Phase, ...]:
    """Joins phases of one name; phases that only ``b`` has (critics) run before."""
    known = {phase.name: phase for phase in b}
    own = {phase.name for phase in a}
    before = tuple(phase for phase in b if phase.name not in own)
    joined = tuple(
        _merge_phase(phase, known[phase.name], repeats)
        if phase.name in known
        else phase
        for phase in a
    )
    return before + joined


def compose(
    *methods: Method,
    weights: Mapping[str, Schedule] | None = None,
    repeats: Mapping[str, int] | None = None,
    sampling: Sampling | None = None,
    name: str | None = None,
    cite: tuple[Citation, ...] = (),
) -> Method:
    """Joins methods; the student's gradient is exactly the weighted sum of theirs.

    Phases are matched by name and their ``trains`` united; phases that only a later
    method has run first; equal roles, draws and terms of critics merge and unequal ones
    are refused by name. Randomness is keyed by the names of terms and draws, so that
    joining changes nobody's. Weights multiply the terms of phases that train the
    student; critics keep theirs.

    Args:
      *methods: at least one; the first one's sampling is the default.
      weights: method name -> number or schedule over cycles.
      repeats: phase name -> repeats, where the methods differ.
      sampling: how the student is sampled.
      name: name of the result; default the names joined by "+".
      cite: citations of the composition itself, put first.

    Returns:
      The method.

    Raises:
      ValueError: on unknown weights, unequal roles, draws, repeats or memory.
    """
    if not methods:
        raise ValueError("compose needs at least one method")
    weights, repeats = dict(weights or {}), dict(repeats or {})
    names = [method.name for method in methods]
    for key in weights:
        if key not in names:
            raise ValueError(unknown("method in weights", key, names))
    parts = [
        method._replace(
            phases=tuple(
                _weighted(p, weights.get(method.name, 1.0)) for p in method.phases
            ),
            stages=tuple(
                Stage(
                    stage.until,
                    tuple(
                        _weighted(p, weights.get(method.name, 1.0))
                        for p in stage.phases
                    ),
                )
                for stage in method.stages
            ),
        )
        for method in methods
    ]
    out = parts[0]
    for part in parts[1:]:
        untils = sorted({stage.until for m in (out, part) for stage in m.stages})
        out = Method(
            name=f"{out.name}+{part.name}",
            roles=_merge_roles(out.roles, part.roles),
            phases=_compose_phases(out.phases, part.phases, repeats),
            batch=out.batch | part.batch,
            sampling=out.sampling,
            memory=_join_memory(out.memory, part.memory),
            stages=tuple(
                Stage(
                    until,
                    _compose_phases(
                        out.phases_at(until - 1), part.phases_at(until - 1), repeats
                    ),
                )
                for until in untils
            ),
            cite=tuple(dict.fromkeys(out.cite + part.cite)),
        )
    known = {phase.name for phase in out.phases}
    for key in repeats:
        if key not in known:
            raise ValueError(unknown("phase in repeats", key, known))
    out = out._replace(
        name=out.name if name is None else name,
        sampling=out.sampling if sampling is None else sampling,
        cite=tuple(dict.fromkeys(tuple(cite) + out.cite)),
    )
    return check(out)


@dataclasses.dataclass(frozen=True)
class _JoinedMemory:
    a: Callable[[int, tuple[int, ...]], Mapping[str, Any]]
    b: Callable[[int, tuple[int, ...]], Mapping[str, Any]]

    def __call__(
        self, batch_size: int, sample_shape: tuple[int, ...]
    ) -> dict[str, Any]:
        first, second = (
            self.a(batch_size, sample_shape),
            self.b(batch_size, sample_shape),
        )
        shared = set(first) & set(second)
        if shared:
            raise ValueError(f"compose: memory {sorted(shared)} exists in both methods")
        return {**first, **second}


def _join_memory(a, b):
    if a is None or b is None or a == b:
        return a if b is None else b if a is None else a
    return _JoinedMemory(a, b)
