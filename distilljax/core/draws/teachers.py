"""Trajectories of a teacher: followed in the update, or read from the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from distilljax.diffusion.fields import Field
from distilljax.diffusion.paths import Path
from distilljax.diffusion.predictions import Prediction
from distilljax.diffusion.solvers import Heun, Solver, solve
from distilljax.diffusion.times import Grid, PathGrid, between
from distilljax.runtime import words

if TYPE_CHECKING:
    from distilljax.core.context import Context

Array = jax.Array
sg = jax.lax.stop_gradient


@words.call
@dataclasses.dataclass(frozen=True)
class TeacherTrajectory:
    """States of the teacher's own ODE trajectory from noise, and where it ends.

    With one segment this is a noise-image pair; with more, states at lower noise levels
    come at no further cost.

    Attributes:
      segments: grid segments; a state is kept at the start of each.
      substeps: solver steps inside a segment.
      grid: time grid of the segments.
      solver: solver of `distilljax.solvers`.
      guidance: guidance scale ``w`` of the teacher.
      path: path of the ODE; default the student's network's.
      role: the teacher.
    """

    segments: int = 4
    substeps: int = 2
    grid: Grid = PathGrid()
    solver: Solver = Heun()
    guidance: float = 1.0
    path: Path | None = None
    role: str = "teacher"
    fields: ClassVar[frozenset[str]] = frozenset()

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return (self.role,)

    def __call__(self, ctx: Context) -> dict[str, Any]:
        """``{"states": [K, B, ...], "times": K numbers, "end": [B, ...]}``."""
        path = ctx.nets["student"].path if self.path is None else self.path
        kind = ctx.nets[self.role].kind
        field = ctx.nets[self.role].guided(
            ctx.data, self.guidance, kind=kind, path=path
        )
        coarse = self.grid(self.segments, path)
        start = path.start(ctx.normal("noise"), t=coarse[0])
        states, end = follow(
            field,
            start,
            coarse,
            self.substeps,
            path=path,
            solver=self.solver,
            kind=kind,
        )
        return {"states": sg(states), "times": coarse[:-1], "end": sg(end)}


def follow(
    field: Field,
    start: Array,
    coarse: Sequence[float],
    substeps: int,
    *,
    path: Path,
    solver: Solver,
    kind: Prediction,
    key: Array | None = None,
) -> tuple[Array, Array]:
    """Follows a field's ODE and keeps the state at the start of every segment.

    Args:
      field: prediction of ``kind`` on ``path``.
      start: state at ``coarse[0]``, ``[B, ...]``.
      coarse: times of the ``K`` segments, ``K + 1`` numbers.
      substeps: solver steps inside a segment, see `times.between`.
      path: path of states and times.
      solver: see `solvers`.
      kind: kind of the field.
      key: randomness of a noisy solver.

    Returns:
      States ``[K, B, ...]`` and the end ``[B, ...]``.
    """
    times = [
        time
        for t, s in zip(coarse[:-1], coarse[1:], strict=True)
        for time in between(t, s, substeps, path)
    ]
    end, states = solve(
        field,
        start,
        [*times, coarse[-1]],
        path=path,
        solver=solver,
        kind=kind,
        key=key,
        trajectory=True,
    )
    kept = states[substeps - 1 : -1 : substeps]
    return jnp.concatenate([start[None], kept]), end


@words.call
@dataclasses.dataclass(frozen=True)
class StoredPairs:
    """Noise-image pairs that come with the batch, in place of `TeacherTrajectory`.

    Reads noise ``eps``, standard normal, and ``x0``, where the teacher leads it under
    the batch's ``cond``: what ``distilljax pairs`` writes and `data.pairs` reads.

    Attributes:
      grid: its first time is where generation starts.
      path: path of the state; default the student's network's. A pair suits any.
    """

    grid: Grid = PathGrid()
    path: Path | None = None
    segments: ClassVar[int] = 1
    fields: ClassVar[frozenset[str]] = frozenset({"x0", "eps"})

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return ()

    def __call__(self, ctx: Context) -> dict[str, Any]:
        """As `TeacherTrajectory` with one segment."""
        path = ctx.nets["student"].path if self.path is None else self.path
        t = self.grid(1, path)[0]
        start = path.start(ctx.data["eps"], t=t)
        return {"states": start[None], "times": (t,), "end": ctx.data["x0"]}


@words.call
@dataclasses.dataclass(frozen=True)
class StoredTrajectory:
    """Teacher trajectories that come with the batch, in place of `TeacherTrajectory`.

    Reads ``states [B, K, ...]`` at ``times [B, K]`` and their end ``x0``: what
    ``distilljax pairs --kind=trajectory`` writes, on the path of the teacher.

    Attributes:
      segments: ``K``.
      path: path of states and times; default the student's network's.
    """

    segments: int = 4
    path: Path | None = None
    fields: ClassVar[frozenset[str]] = frozenset({"x0", "states", "times"})

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return ()

    def __call__(self, ctx: Context) -> dict[str, Any]:
        """As `TeacherTrajectory`, with times ``[K, B]``.

        Raises:
          ValueError: if the batch holds another number of states.
        """
        states, times = ctx.data["states"], ctx.data["times"]
        if states.shape[1] != self.segments:
            raise ValueError(
                f"data field 'states' must hold {self.segments} states per sample, got "
                f"{states.shape[1]}; pass StoredTrajectory({states.shape[1]}), or "
                f"write the trajectories with --segments={self.segments}"
            )
        return {
            "states": jnp.moveaxis(states, 1, 0),
            "times": jnp.moveaxis(times, 1, 0),
            "end": ctx.data["x0"],
        }


Trajectory = TeacherTrajectory | StoredPairs | StoredTrajectory
