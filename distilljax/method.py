"""Method records: which networks play, what trains when on what, and whom to cite.

A method is data. A *term* is a function of one `Context` to values; a *phase* trains
some roles on named, weighted terms; a *method* is roles, phases, batch fields and the
way its student is sampled. The trainer takes the masked mean of every term, applies its
weight schedule and sums; it knows no method. `compose` joins methods so that the
gradient is exactly the weighted sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from distilljax.context import Context
from distilljax.errors import unknown
from distilljax.sampling import Consistency, Renoise
from distilljax.times import EvenGrid, Grid, Product, Schedule

Array = jax.Array


class Out(NamedTuple):
    """Result of a term that has more to say than its values.

    Attributes:
      values: ``[n]`` or more leading axes; ``n`` need not be the batch.
      metrics: scalars to log under the term's name.
      memory: new values of memory entries; an entry is written by one term only.
    """

    values: Array
    metrics: Mapping[str, Array] = {}
    memory: Mapping[str, Any] = {}


class Term(NamedTuple):
    """A named, weighted part of a loss.

    Attributes:
      name: unique in its phase; randomness is keyed by it.
      loss: ``Context -> values | Out``.
      weight: number or schedule over cycles.
      mask: data field ``[n]``, 1 where a value counts; the mean is over those.
      coupled: whether samples of a batch interact, which forbids accumulation.
    """

    name: str
    loss: Callable[[Context], Array | Out]
    weight: Schedule = 1.0
    mask: str | None = None
    coupled: bool = False


class Phase(NamedTuple):
    """One kind of update.

    Attributes:
      name: by convention the first trained role; compose matches by it.
      trains: roles that get a gradient; everything else is frozen.
      terms: what is minimised.
      draws: by name, frozen dataclasses ``Context -> pytree`` run once per update,
        inside the gradient, and shared by the terms under ``ctx.data[name]``.
      collect: ``Context -> mapping``; with ``trains=()`` a phase computes without
        gradient and adds its result to the data of later phases of the cycle. Results
        with a leading axis ``repeat`` times the batch are minibatched over repeats.
      repeat: updates per cycle.
      fresh: whether every repeat gets its own batch; otherwise the previous phase's.
      merge: ``({term: gradients}, step) -> gradients`` instead of the sum.
    """

    name: str
    trains: tuple[str, ...]
    terms: tuple[Term, ...] = ()
    draws: Mapping[str, Callable[[Context], Any]] = {}
    collect: Callable[[Context], Mapping[str, Any]] | None = None
    repeat: int = 1
    fresh: bool = True
    merge: Callable[[Mapping[str, Any], Array], Any] | None = None


class Follow(NamedTuple):
    """Parameters that follow another role's: target EMA, snapshot, teacher refresh.

    Attributes:
      of: role followed.
      decay: ``new = decay * old + (1 - decay) * of``; 0 copies.
      every: cycles between updates.
      after: phase after which to update; default the end of the cycle.
    """

    of: str
    decay: Schedule = 0.0
    every: int = 1
    after: str | None = None


class Role(NamedTuple):
    """A player.

    Attributes:
      network: key into the networks given; a network under the role's own name wins.
      init: ``teacher``, ``student``, another role, ``random`` or ``given`` (parameters
        that the user passes, as a teacher's).
      follow: how its parameters follow another role.
      derive: ``(params by role, step) -> params``, a frozen dataclass; the role then
        owns no parameters and gradients flow to the roles that it reads.
      needs: capabilities its network must have.
    """

    network: str = "backbone"
    init: str = "teacher"
    follow: Follow | None = None
    derive: Callable[[Mapping[str, Any], Array], Any] | None = None
    needs: frozenset[str] = frozenset()


class Stage(NamedTuple):
    """Phases that stand in for the method's until a cycle is reached."""

    until: int
    phases: tuple[Phase, ...]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the student of a method is sampled.

    Attributes:
      grid: ``(steps, path) -> times``; the grid that training used.
      renoise: rule between steps, see `distilljax.sampling`.
      path: path of the states; default the student's.
      two_time: whether the student is told the end time; default if it can be.
      boundary: see `AffineFlowMap`.
      role: the role that is sampled.
    """

    grid: Grid = EvenGrid()
    renoise: Renoise = Consistency()
    path: Any = None
    two_time: bool | None = None
    boundary: float = 0.0
    role: str = "student"


@dataclasses.dataclass(frozen=True)
class Citation:
    """Whom to cite.

    Attributes:
      id: registry id.
      title: of the paper.
      authors: as in "Song, Dhariwal, Chen, Sutskever".
      year: of the first version.
      venue: arXiv number or venue.
      equations: where the loss stands in the paper.
    """

    id: str
    title: str
    authors: str
    year: int
    venue: str
    equations: str = ""

    def __str__(self) -> str:
        where = f", {self.equations}" if self.equations else ""
        return f"{self.authors}, {self.title}, {self.year}, {self.venue}{where}"


class Method(NamedTuple):
    """A distillation method as data.

    Attributes:
      name: registry id, or the ids joined by "+".
      roles: players by name; ``student`` is the one that is sampled.
      phases: run in this order every cycle.
      batch: fields that a batch must hold.
      sampling: how the student is sampled.
      memory: ``(batch_size, sample_shape) -> mapping`` of initial state arrays.
      stages: other phases at the start of training, in order of ``until``.
      cite: whom to cite.
    """

    name: str
    roles: Mapping[str, Role]
    phases: tuple[Phase, ...]
    batch: frozenset[str] = frozenset({"x0"})
    sampling: Sampling = Sampling()
    memory: Callable[[int, tuple[int, ...]], Mapping[str, Any]] | None = None
    stages: tuple[Stage, ...] = ()
    cite: tuple[Citation, ...] = ()

    def phases_at(self, step: int) -> tuple[Phase, ...]:
        """Phases of cycle ``step`` (Python level, between compiled programs)."""
        for stage in self.stages:
            if step < stage.until:
                return stage.phases
        return self.phases

    @property
    def trained(self) -> tuple[str, ...]:
        """Roles that some phase or stage trains, in order of the roles."""
        every = [self.phases, *(stage.phases for stage in self.stages)]
        names = {r for phases in every for phase in phases for r in phase.trains}
        return tuple(r for r in self.roles if r in names)


def batches(phases: tuple[Phase, ...]) -> int:
    """Batches that one cycle of the phases takes from the source."""
    return sum(phase.repeat for phase in phases if phase.fresh)


def check(method: Method) -> Method:
    """Returns a method whose records agree with each other.

    Raises:
      ValueError: naming the record, what it refers to and what exists.
    """
    where = f"method {method.name!r}"
    if "student" not in method.roles:
        raise ValueError(f"{where}: needs a role 'student', has {sorted(method.roles)}")
    last = 0
    for stage in method.stages:
        if stage.until <= last:
            raise ValueError(f"{where}: stages must end at increasing cycles > 0")
        last = stage.until
    for phases in (method.phases, *(stage.phases for stage in method.stages)):
        _check_phases(where, method, phases)
    for name, role in method.roles.items():
        if role.follow is not None and role.follow.of not in method.roles:
            raise ValueError(
                f"{where}: " + unknown("role", role.follow.of, method.roles)
            )
        if role.init not in {"teacher", "random", "given", *method.roles}:
            raise ValueError(f"{where}: init of {name!r}: {role.init!r} is no role")
        if role.derive is not None and name in method.trained:
            raise ValueError(
                f"{where}: role {name!r} is derived and owns no parameters; train the "
                "roles that it is derived from"
            )
    return method


def _check_phases(where: str, method: Method, phases: tuple[Phase, ...]) -> None:
    if not phases or not phases[0].fresh:
        raise ValueError(f"{where}: the first phase of a cycle must take a fresh batch")
    names = [phase.name for phase in phases]
    if len(set(names)) != len(names):
        raise ValueError(f"{where}: phase names must be unique, got {names}")
    for phase in phases:
        label = f"{where}, phase {phase.name!r}"
        if phase.repeat < 1:
            raise ValueError(f"{label}: repeat must be at least 1, got {phase.repeat}")
        terms = [term.name for term in phase.terms]
        if len(set(terms)) != len(terms) or set(terms) & set(phase.draws):
            raise ValueError(
                f"{label}: names of terms and draws must be unique, got {terms} and "
                f"{sorted(phase.draws)}"
            )
        for role in phase.trains:
            if role not in method.roles:
                raise ValueError(f"{label}: " + unknown("role", role, method.roles))
        if bool(phase.trains) != bool(phase.terms) or (
            not phase.trains and phase.collect is None
        ):
            raise ValueError(
                f"{label}: a phase either trains roles on terms, or collects "
                f"(trains=(), collect=...); got trains={phase.trains}, terms={terms}"
            )


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
    shared = {t.name for t in a.terms} & {t.name for t in b.terms}
    if shared:
        raise ValueError(
            f"compose: phase {a.name!r} has terms of one name twice: {sorted(shared)}; "
            "randomness is keyed by name, so rename one where it is built"
        )
    return Phase(
        name=a.name,
        trains=tuple(dict.fromkeys(a.trains + b.trains)),
        terms=a.terms + b.terms,
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
    method has run first; equal roles and draws merge and unequal ones are refused by
    name. Randomness is keyed by the names of terms and draws, so that joining changes
    nobody's. Weights multiply the terms of phases that train the student; critics keep
    theirs.

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
