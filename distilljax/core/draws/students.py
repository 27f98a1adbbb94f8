"""What a student makes in an update, and the guidance scales that it is told."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.diffusion.paths import Path
from distilljax.diffusion.times import Grid, Law, PathGrid
from distilljax.runtime import words
from distilljax.runtime.axes import looked_up

if TYPE_CHECKING:
    from distilljax.core.binding import Bound
    from distilljax.core.context import Context
    from distilljax.diffusion.flow_maps import FlowMap

Array = jax.Array
sg = jax.lax.stop_gradient


@words.call
@dataclasses.dataclass(frozen=True)
class Among:
    """Guidance scales drawn with equal chances from a list."""

    values: tuple[float, ...]


Guidance = float | tuple[float, float] | Among


@dataclasses.dataclass(frozen=True)
class Scales:
    """Guidance scales, one per sample, for teachers and the students they are told to.

    Attributes:
      of: one scale, a range ``(low, high)`` or `Among` a list.
    """

    of: Guidance

    @property
    def middle(self) -> float:
        """The scale at which a student that was told scales is sampled by default."""
        if isinstance(self.of, Among):
            return self.of.values[len(self.of.values) // 2]
        return sum(self.of) / 2.0 if isinstance(self.of, tuple) else float(self.of)

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return ()

    def __call__(self, ctx: Context) -> Array:
        """``w``, ``[B]``."""
        if isinstance(self.of, Among):
            index = ctx.integers("guidance", len(self.of.values))
            return looked_up(jnp.asarray(self.of.values, jnp.float32), index)
        if isinstance(self.of, tuple):
            low, high = self.of
            return low + (high - low) * ctx.uniform("guidance")
        return ctx.zeros() + self.of


@words.call
@dataclasses.dataclass(frozen=True)
class Rollout:
    """The student's own sample after some steps of its sampler (backward simulation).

    A *case* is a number of steps ``n`` of ``steps`` and an exit step ``k < n``. The
    steps before the exit run without gradient, each a jump to the data followed by
    re-noising with fresh noise; the gradient goes through the exit step alone. The
    input law of every step is then that of sampling with the same grid. Data-free.

    Attributes:
      steps: numbers of steps that the student shall serve, for example ``(1, 2, 4)``.
      grid: their time grids.
      path: path of the states; default the student's network's.
      two_time: whether the student is told the end time 0.
      slots: None draws one case for the whole batch (DMD2). Otherwise an integer per
        case, in the order ``(n, k)`` of ``[(n, k) for n in steps for k in range(n)]``:
        of every ``sum(slots)`` samples that many take the case, which costs less than
        the longest rollout and has less variance. The sum must divide the batch.
      role: the role that is rolled out.
      timed: whether the result is ``{"x0", "t"}`` with the times ``[B]`` from which the
        samples were made, for a fake score that is told them.
      law: draws the start times per sample in place of the grid's (rCM's released
        code): the first is ``t_max``, each later one the smaller of its predecessor
        and a draw of the law. The number of steps made is then uniform in ``1 ..
        max(steps)``. It takes no ``slots``.

    References:
      Yin et al., Improved Distribution Matching Distillation, 2024, arXiv:2405.14867,
        section 4.4.
      Zheng et al., rCM, 2025, arXiv:2510.08431.
    """

    steps: tuple[int, ...] = (1,)
    grid: Grid = PathGrid()
    path: Path | None = None
    two_time: bool | None = False
    slots: tuple[int, ...] | None = None
    role: str = "student"
    timed: bool = False
    law: Law | None = None

    def __post_init__(self):
        if self.law is not None and self.slots is not None:
            raise ValueError(
                "a rollout at the drawn times of a law takes no slots, got slots="
                f"{self.slots}; leave one of law and slots out"
            )
        cases = sum(self.steps)
        if self.slots is not None and (
            len(self.slots) != cases or min(self.slots) < 0 or sum(self.slots) < 1
        ):
            raise ValueError(
                f"slots must be {cases} integers, one per step of each entry of steps "
                f"{self.steps}, got {self.slots}"
            )

    def _cases(self, path: Path) -> list[tuple[tuple[float, ...], int]]:
        """``(start times of all steps, exit step)`` of every case."""
        rows = [self.grid(n, path)[:-1] for n in self.steps]
        return [(row, k) for row in rows for k in range(len(row))]

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return (self.role,)

    def __call__(self, ctx: Context) -> Any:
        path = ctx.nets[self.role].path if self.path is None else self.path
        run = self._one_case if self.slots is None else self._split
        x, t = run(ctx, path)
        return {"x0": x, "t": t + ctx.zeros()} if self.timed else x

    def _maps(
        self, ctx: Context, path: Path, cond: Any, step: int | Array
    ) -> tuple[Any, Any]:
        """The student's map at a step, with and without gradient."""
        student = ctx.nets[self.role].turn(step)
        live, frozen = (
            net.flow_map(cond, path=path, two_time=self.two_time)
            for net in (student, student.detached())
        )
        return live, frozen

    def _scheduled(self, ctx: Context, path: Path) -> tuple[Array, Array]:
        """``(start times [steps] or [steps, B], exit step)`` of a drawn case."""
        if self.law is not None:
            deepest = max(self.steps) - 1
            leave = ctx.choice("case", deepest + 1)
            times = [ctx.zeros() + path.t_max]
            for i in range(deepest):
                drawn = ctx.times(f"simulation{i + 1}", self.law, path)
                times.append(jnp.minimum(times[-1], drawn))
            return jnp.stack(times), leave
        cases = self._cases(path)
        deepest = max(k for _, k in cases)
        # Schedules are padded so that one table of times serves every case.
        rows = [row + row[-1:] * (deepest + 1 - len(row)) for row, _ in cases]
        case = ctx.choice("case", len(cases))
        times = jnp.asarray(rows, jnp.float32)[case]
        return times, jnp.asarray([k for _, k in cases])[case]

    def _one_case(self, ctx: Context, path: Path) -> tuple[Array, Array]:
        times, leave = self._scheduled(ctx, path)
        deepest = len(times) - 1
        noises = [ctx.normal(f"renoise{i}") for i in range(deepest)]
        x = path.start(ctx.normal("start"), t=times[0])

        def advance(x: Array, step: tuple[Array, ...]) -> tuple[Array, None]:
            index, t, s, eps = step

            def moved(x: Array) -> Array:
                frozen = self._maps(ctx, path, ctx.told, index)[1]
                return path.noise(sg(frozen(x, t, 0.0)), eps, s)

            return jax.lax.cond(index < leave, moved, lambda x: x, x), None

        if deepest:
            # One network in the program, however deep the rollout.
            steps = (jnp.arange(deepest), times[:-1], times[1:], jnp.stack(noises))
            x, _ = jax.lax.scan(advance, x, steps)
        live, _ = self._maps(ctx, path, ctx.told, leave)
        last = jax.lax.dynamic_index_in_dim(times, leave, keepdims=False)
        return live(sg(x), last, 0.0), last

    def _split(self, ctx: Context, path: Path) -> tuple[Array, Array]:
        assert self.slots is not None
        group = sum(self.slots)
        if ctx.batch_size % group:
            raise ValueError(
                f"the batch {ctx.batch_size} must be a multiple of the sum of slots "
                f"{self.slots} = {group}"
            )
        slots = [
            case
            for case, count in zip(self._cases(path), self.slots, strict=True)
            for _ in range(count)
        ]
        slots.sort(key=lambda case: case[1])
        leave = np.asarray([k for _, k in slots])
        table = np.zeros((group, leave[-1] + 1), np.float32)
        for row, (times, k) in zip(table, slots, strict=True):
            row[: k + 1] = times[: k + 1]

        def grouped(x: Array) -> Array:
            """``[groups, slots, ...]``; groups keep the batch sharding."""
            return x.reshape((-1, group) + x.shape[1:])

        def flat(x: Array) -> Array:
            return x.reshape((-1,) + x.shape[2:])

        def told(times: Array) -> Array:
            """Times of slots for all rows of them."""
            return jnp.tile(times, ctx.batch_size // group)

        x = path.start(ctx.normal("start"), t=told(table[:, 0]))
        if leave[-1]:
            plan = _turns(leave)
            cond = jax.tree.map(grouped, ctx.told)

            def turn(x: Array, now: tuple[Array, ...]) -> tuple[Array, None]:
                index, slot, active, t, s, key = now
                rows = x[:, slot]
                one = jax.tree.map(lambda c: flat(c[:, slot]), cond)
                frozen = self._maps(ctx, path, one, index)[1]
                clean = sg(frozen(flat(rows), told(t), 0.0))
                eps = ctx.normal_of(key, clean)
                moved = path.noise(clean, eps, told(s)).reshape(rows.shape)
                keep = active.reshape((1, -1) + (1,) * (x.ndim - 2))
                return x.at[:, slot].set(jnp.where(keep, moved, rows)), None

            # One network and one draw in the program, whatever the slots.
            turns = (
                np.arange(len(plan.slot)),
                plan.slot,
                plan.active,
                table[plan.slot, plan.step],
                table[plan.slot, plan.step + 1],
                ctx.keys([f"renoise{i}" for i in range(len(plan.slot))]),
            )
            x = flat(jax.lax.scan(turn, grouped(x), turns)[0])
        exits = told(table[np.arange(group), leave])
        live, _ = self._maps(ctx, path, ctx.told, group)
        return live(sg(x), exits, 0.0), exits


class _Turns(NamedTuple):
    """What is computed turn by turn, arrays ``[turns, width]``.

    Attributes:
      slot: the slots of a turn, each once.
      step: the step that each takes.
      active: whether it takes one; the others fill the turn and stay as they are.
    """

    slot: np.ndarray
    step: np.ndarray
    active: np.ndarray


def _turns(leave: np.ndarray) -> _Turns:
    """Turns of equal width in which each slot takes its steps, one after the other.

    A turn takes the slots with the most steps to go, which needs no more turns than the
    longest slot or the sum of all steps makes necessary. Of the widths that compute at
    most a tenth more than this sum, the largest.

    Args:
      leave: number of steps of each slot, at least one of them positive.
    """
    total, deepest = int(leave.sum()), int(leave.max())

    def count(width: int) -> int:
        return max(deepest, -(-total // width))

    widths = range(1, int((leave > 0).sum()) + 1)
    width = max(w for w in widths if 10 * w * count(w) <= 11 * total)
    done = np.zeros_like(leave)
    turns: list[tuple[np.ndarray, ...]] = []
    for _ in range(count(width)):
        slot = np.sort(np.argsort(done - leave, kind="stable")[:width])
        active = done[slot] < leave[slot]
        turns.append((slot, np.where(active, done[slot], 0), active))
        done[slot] += active
    assert (done == leave).all()
    return _Turns(*(np.stack(parts) for parts in zip(*turns, strict=True)))


@dataclasses.dataclass(frozen=True)
class Part:
    """One field of an earlier draw of the phase.

    Attributes:
      of: name of that draw.
      field: of its result.
    """

    of: str
    field: str

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return ()

    def __call__(self, ctx: Context) -> Any:
        return ctx.data[self.of][self.field]


@dataclasses.dataclass(frozen=True)
class OdeRollout:
    """One step, with gradient, of the student's own deterministic trajectory.

    Every sample draws a case, a number of steps ``n`` of ``steps`` and a step ``k < n``
    of it. The steps before it follow the student's prediction without gradient and
    without fresh noise (DDIM), so that the trajectory is that of `Deterministic`
    sampling. Data-free.

    Attributes:
      steps: numbers of steps that the student shall serve.
      grid: their time grids.
      random_end: ends the step at a time drawn uniformly from the 90 % of it next to
        the grid's end, not at that end.
      path: path of the states; default the student's network's.
      role: the role that is rolled out.

    References:
      Luo et al., Learning Few-Step Diffusion Models by Trajectory Distribution
        Matching, 2025, arXiv:2503.06674.
    """

    steps: tuple[int, ...] = (4,)
    grid: Grid = PathGrid()
    random_end: bool = False
    path: Path | None = None
    role: str = "student"

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return (self.role,)

    def __call__(self, ctx: Context) -> dict[str, Any]:
        """``{"x0", "x_s", "t", "s"}``: prediction, state at ``s``; times ``[B]``.

        Gradient flow: to ``x0`` and ``x_s``, through the step at ``t`` alone.
        """
        path = ctx.nets[self.role].path if self.path is None else self.path
        student = ctx.nets[self.role]

        def jump(net: Bound) -> FlowMap:
            return net.flow_map(ctx.told, path=path, two_time=False)

        rows = [self.grid(n, path) for n in self.steps]
        cases = [(row, k) for row in rows for k in range(len(row) - 1)]
        deepest = max(k for _, k in cases)
        # A sample that has reached its step stays; the padding is never used.
        table = [row + row[:1] * (deepest + 2 - len(row)) for row, _ in cases]
        case = ctx.integers("case", len(cases))
        times = looked_up(jnp.asarray(table, jnp.float32), case)
        leave = looked_up(jnp.asarray([k for _, k in cases]), case)
        x = path.start(ctx.normal("start"), t=times[:, 0])
        for i in range(deepest):
            frozen = jump(student.detached().turn(i))
            moved = sg(frozen(x, times[:, i], times[:, i + 1]))
            x = jnp.where((i < leave).reshape((-1,) + (1,) * (x.ndim - 1)), moved, x)
        steps = jnp.asarray([row[k : k + 2] for row, k in cases], jnp.float32)
        t, s = jnp.moveaxis(looked_up(steps, case), 1, 0)
        if self.random_end:
            s = s + 0.9 * ctx.uniform("end") * (t - s)
        x0 = jump(student.turn(deepest))(sg(x), t, 0.0)
        return {"x0": x0, "x_s": path.jump(x0, sg(x), t, s), "t": t, "s": s}


@words.call
@dataclasses.dataclass(frozen=True)
class Denoised:
    """The student's prediction of the data from noised data, at the times of a grid.

    Attributes:
      steps: number of steps of the sampler that the student shall serve.
      grid: time grid; its start times are trained.
      shares: probability of each start time, from noise to data; default equal.
      of: data field that is noised.
      path: path of the states; default the student's network's.
      role: the role that predicts.
      timed: see `Rollout`.
    """

    steps: int = 4
    grid: Grid = PathGrid()
    shares: tuple[float, ...] | None = None
    of: str = "x0"
    path: Path | None = None
    role: str = "student"
    timed: bool = False

    def __post_init__(self):
        if self.shares is not None and (
            len(self.shares) != self.steps or abs(sum(self.shares) - 1.0) > 1e-6
        ):
            raise ValueError(
                f"shares must be {self.steps} probabilities that add up to 1, one per "
                f"step, got {self.shares}"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return (self.role,)

    def __call__(self, ctx: Context) -> Any:
        path = ctx.nets[self.role].path if self.path is None else self.path
        times = jnp.asarray(self.grid(self.steps, path)[:-1], jnp.float32)
        shares = self.shares or (1.0 / self.steps,) * self.steps
        edges = jnp.cumsum(jnp.asarray(shares))[:-1]
        step = jnp.sum(ctx.uniform("step")[:, None] >= edges, axis=1)
        return _jumped(self, ctx, path, looked_up(times, step))


@words.call
@dataclasses.dataclass(frozen=True)
class Jump:
    """The student's prediction of the data from noised data, at times of a law.

    Attributes:
      law: law of the time from which it jumps.
      of: data field that is noised.
      path: path of the states; default the student's network's.
      role: the role that predicts.
      timed: see `Rollout`.
    """

    law: Law
    of: str = "x0"
    path: Path | None = None
    role: str = "student"
    timed: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return (self.role,)

    def __call__(self, ctx: Context) -> Any:
        path = ctx.nets[self.role].path if self.path is None else self.path
        return _jumped(self, ctx, path, ctx.times("t", self.law, path))


def _jumped(draw: Denoised | Jump, ctx: Context, path: Path, t: Array) -> Any:
    """The prediction of the data from data noised to ``t``, with ``t`` if asked."""
    x0 = ctx.data[draw.of]
    x_t = path.noise(x0, ctx.normal("eps", x0), t)
    f = ctx.nets[draw.role].flow_map(ctx.told, path=path, two_time=False)
    x = f(x_t, t, 0.0)
    return {"x0": x, "t": t} if draw.timed else x


@dataclasses.dataclass(frozen=True)
class Renoise:
    """A shared re-noised point ``{"x_t", "t", "eps"}`` of a sample in the data.

    Attributes:
      law: law of the time.
      of: data field that is noised.
      path: path; default the student's network's.
    """

    law: Law
    of: str = "x0"
    path: Path | None = None

    def __call__(self, ctx: Context) -> dict[str, Any]:
        path = ctx.nets["student"].path if self.path is None else self.path
        x = ctx.data[self.of]
        t = ctx.times("t", self.law, path)
        eps = ctx.normal("eps", x)
        return {"x_t": path.noise(x, eps, t), "t": t, "eps": eps}
