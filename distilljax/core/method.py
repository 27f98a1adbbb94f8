"""Method records: which networks play, what trains when on what, and whom to cite.

A method is data. A *term* is a function of one `Context` to values; a *phase* trains
some roles on named, weighted terms; a *method* is roles, phases, batch fields and the
way its student is sampled. The trainer takes the masked mean of every term, applies its
weight schedule and sums; it knows no method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from distilljax.core.binding import Bound
from distilljax.core.context import Context
from distilljax.diffusion.flow_maps import FlowMap
from distilljax.diffusion.sampler import Consistency, Renoise
from distilljax.diffusion.times import Grid, PathGrid, Schedule
from distilljax.runtime.errors import unknown

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
      derive: ``(params by role, step) -> params``, a frozen dataclass whose ``reads``
        names the roles that it takes; the role then owns no parameters and gradients
        flow to those.
      needs: capabilities its network must have.
      arguments: of the function that makes its network on an image backbone, where a
        config leaves that network out.
    """

    network: str = "backbone"
    init: str = "teacher"
    follow: Follow | None = None
    derive: Callable[[Mapping[str, Any], Array], Any] | None = None
    needs: frozenset[str] = frozenset()
    arguments: Mapping[str, Any] = {}


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
      boundary: see `AffineFlowMap`; None is that of the path, `Path.boundary`.
      role: the role that is sampled.
      guidance: scale that a student is told which was trained for several; None for
        students that are told none.
      view: ``(bound role, condition, path) -> flow map``, a frozen dataclass, where the
        network is no flow map by itself; default `Bound.flow_map`.
      start: batch field that samples start from in place of noise.
      steps: steps that samples are usually made in, for hints and grids: the most that
        training simulates, those of the last round, 16 of a teacher's ODE.
    """

    grid: Grid = PathGrid()
    renoise: Renoise = Consistency()
    path: Any = None
    two_time: bool | None = None
    boundary: float | None = 0.0
    role: str = "student"
    guidance: float | None = None
    view: Callable[[Bound, Any, Any], FlowMap] | None = None
    start: str | None = None
    steps: int = 1


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
    def rounds(self) -> tuple[tuple[Phase, ...], ...]:
        """Phases of every stage, and those that run after all of them."""
        return (*(stage.phases for stage in self.stages), self.phases)

    def with_phases(self, change: Callable[[Phase], Phase]) -> Method:
        """The method with every phase changed, those of its stages too."""
        return self._replace(
            phases=tuple(change(phase) for phase in self.phases),
            stages=tuple(
                Stage(stage.until, tuple(change(phase) for phase in stage.phases))
                for stage in self.stages
            ),
        )

    @property
    def trained(self) -> tuple[str, ...]:
        """Roles that some phase or stage trains, in order of the roles."""
        names = {r for phases in self.rounds for phase in phases for r in phase.trains}
        return tuple(r for r in self.roles if r in names)

    @property
    def taught(self) -> bool:
        """Whether a role is the teacher or starts from it."""
        return any(
            name == "teacher" or role.init == "teacher"
            for name, role in self.roles.items()
        )


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
    for phases in method.rounds:
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
    silent = [p.name for p in phases if p.draws and "guidance" not in p.draws]
    if silent and any("guidance" in p.draws for p in phases):
        raise ValueError(
            f"{where}: a student that is told guidance scales must be told them in "
            f"every phase that draws its samples, and {silent} draw none; give each "
            "of the methods the same scales, or tell none"
        )
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
