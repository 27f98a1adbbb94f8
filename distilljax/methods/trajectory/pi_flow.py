"""pi-Flow: students that emit a policy, a field that is followed for free."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.core.context import Context
from distilljax.core.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.diffusion.fields import Field
from distilljax.diffusion.paths import expand
from distilljax.diffusion.sampler import Deterministic
from distilljax.diffusion.times import Grid, Schedule, ShiftedGrid, shifted, value_at
from distilljax.methods.parts import TEACHER, guidance_needs
from distilljax.methods.policies import (
    POLICIES,
    Policy,
    PolicyView,
    mean_velocity,
    rollout,
    unshifted,
    velocity,
)
from distilljax.methods.registry import register
from distilljax.runtime.axes import looked_up
from distilljax.runtime.errors import unknown

Array = jax.Array
sg = jax.lax.stop_gradient

PI_FLOW = Citation(
    "pi_flow",
    "pi-Flow: Policy-Based Few-Step Generation via Imitation Distillation",
    "Chen, Zhang, Tan, Guibas, Wetzstein, Bi",
    2025,
    "arXiv:2510.14974",
)


@register(
    family="trajectory",
    cite=PI_FLOW,
    summary="one evaluation emits a policy whose path imitates the teacher",
)
def pi_flow(
    *,
    steps: int = 1,
    grid: Grid | None = None,
    shift: float = 1.0,
    policy: str = "mixture",
    states: int = 2,
    substeps: int = 32,
    sampling_substeps: int = 128,
    dropout: float | None = None,
    teacher_ratio: Schedule = 0.0,
    window: float = 0.0,
    temperature: float = 1.0,
    data_free: bool = False,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Method:
    """pi-Flow: a policy made by one evaluation imitates the teacher where it goes.

    On a segment ``[t_src, t_dst]`` of the grid the student emits a policy ``pi``. The
    policy, held constant and with components dropped, is rolled out to ``states``
    random times ``t_a``, from each of which the teacher moves the state on to ``t_b``
    in one step along its velocity ``v``, and

        mean over states |u(t_a, t_b - window) - v(x_a, t_a)|^2 / 2

    with ``u`` the mean of ``pi``'s velocity on its own way between two times. Where the
    teacher does not move and there is no window the mean is ``pi``'s local velocity.
    The gradient flows through the policy's parameters, at fixed states ``x_a``.

    Defaults are those of the released ImageNet recipe (Lakonik/piFlow), whose guidance
    is 2.7 in the interval (0, 0.6) for DiT. The text-to-image recipes take
    ``grid=ShiftedGrid(3.2, 0.5)``, ``shift=3.2``, ``window=3/128``, four states, a
    ratio that falls from 1 to 0 in 2000 updates (FLUX), dropout 0.1 and temperature
    0.3 at four steps (mixtures), or the policies ``grid`` and ``polynomial`` of ten
    predictions. The released code follows policies in 128 steps per unit of the
    unshifted clock, here their number per way is fixed.

    Args:
      steps: network evaluations that the student is trained for.
      grid: its segments; default `ShiftedGrid` of the ``shift``, whose steps are even
        in the unshifted clock.
      shift: of the clock in which segments are drawn by their length, states are drawn
        within them, and policies are followed; see `distilljax.methods.policies`.
      policy: ``mixture``, see `MixturePolicy`; ``grid``, see `GridPolicy`, which should
        be sampled on the segments of training; ``polynomial``, see `PolynomialPolicy`.
      states: states of a rollout at which the teacher is asked.
      substeps: policy steps between two of them.
      sampling_substeps: policy steps of a segment when sampling.
      dropout: share of a mixture's components dropped in the rollout; default 0.05 for
        a mixture, the other policies have none.
      teacher_ratio: share of the way that the teacher moves the state.
      window: length by which every average reaches on, in the unshifted clock; states
        keep that far from the end of their segment.
      temperature: of a mixture in sampling, see `PolicyView`.
      data_free: trains on all segments of the student's own rollout from noise, each
        weighted by its length in the unshifted clock, in place of one segment from
        noised data.
      guidance: scale ``w`` of the teacher.
      guidance_interval: times at which guidance is on.

    Returns:
      The method. Batch: ``x0`` (not if data-free) and ``cond``. Roles: student, the
      network ``policy`` with a function of that name (see `networks.policy`), teacher.
    """
    if policy not in POLICIES:
        raise ValueError(unknown("policy", policy, POLICIES))
    mixture = policy == "mixture"
    if not mixture and (dropout or temperature != 1.0):
        raise ValueError(
            "dropout and temperature belong to the mixture policy, got dropout="
            f"{dropout}, temperature={temperature} with policy={policy!r}; leave them "
            "out"
        )
    if not 0.0 <= window <= 1.0:
        raise ValueError(f"window must be a share of the clock, got {window}")
    dropout = (0.05 if mixture else 0.0) if dropout is None else dropout
    segments = ShiftedGrid(shift) if grid is None else grid
    averaged = window > 0.0 or not (
        isinstance(teacher_ratio, (int, float)) and teacher_ratio == 0
    )

    def predicted(made: Policy, x: Array, t: Array, s: Array, ratio: Array) -> Array:
        """The policy's velocity that stands against the teacher's at ``(x, t)``."""
        if not averaged:
            return velocity(made, x, t)

        def averages() -> Array:
            return mean_velocity(made, x, t, s, substeps, shift)

        if window > 0.0:
            return averages()
        # Once the teacher no longer moves the state, nothing is averaged.
        return jax.lax.cond(ratio > 0.0, averages, lambda: velocity(made, x, t))

    def imitated(
        ctx: Context, field: Field, index: Array, x: Array, ends: Any, lots: Any
    ) -> tuple[Array, Array]:
        """Values of a segment from ``x``, and the state that it ends with."""
        student = ctx.nets.student
        way, (t, end) = student.path, ends
        if data_free:
            student = student.turn(index)
        made = POLICIES[policy](student, ctx.cond, x, t, end, shift)
        chances = lots["drop"]
        if chances is None:
            chances = ctx.uniform("drop", (ctx.batch_size, made.means.shape[1]))
        moving = made.fixed(chances < dropout)
        ratio = value_at(teacher_ratio, ctx.step)
        lowest = unshifted(way, max(way.t_min, 1e-3 * way.t_max), shift)
        u, last = (unshifted(way, time, shift) for time in (t, end))
        reach = jnp.minimum(window, u - last)
        room = (u - last - reach)[:, None]
        own = (1.0 - ratio) * _gaps(lots["own"]) * room
        lent = ratio * _gaps(_closed(lots["lent"])) * room
        values = []
        for k in range(states):
            u_a = jnp.maximum(u - own[:, k], lowest)
            u = jnp.maximum(u_a - lent[:, k], lowest)
            until = jnp.maximum(u - reach, 0.0) if window > 0.0 else u
            at, after, until = (
                way.t_max * shifted(share, shift) for share in (u_a, u, until)
            )
            x_a = sg(rollout(moving, x, t, at, substeps, shift))
            v = sg(field(x_a, at))
            found = predicted(made, x_a, at, until, ratio)
            values.append(losses.regress(losses.toward(found, v)))
            t, x = after, x_a + expand(after - at, x_a) * v
        if data_free:
            x = sg(rollout(moving, x, t, end, substeps, shift))
        return jnp.mean(jnp.stack(values), axis=0), x

    def prepared(ctx: Context, many: tuple[int, ...]) -> tuple[Array, Field, Any]:
        """Times of the grid, the teacher, and where on the ways the states lie."""
        way = ctx.nets.student.path
        field = ctx.nets.teacher.guided(
            ctx.data,
            guidance,
            kind="velocity",
            path=way,
            interval=guidance_interval,
        )
        shape = (ctx.batch_size, *many)
        lots = {
            "own": jnp.sort(ctx.uniform("student_way", (*shape, states))),
            "lent": jnp.sort(ctx.uniform("teacher_way", (*shape, states - 1))),
            "drop": None,
        }
        return jnp.asarray(segments(steps, way), jnp.float32), field, lots

    def imitate(ctx: Context) -> Array:
        way = ctx.nets.student.path
        times, field, lots = prepared(ctx, ())
        shares = unshifted(way, times, shift)
        place = shares[0] * ctx.uniform("segment")[:, None]
        index = jnp.sum(place < shares[None, 1:-1], axis=1)
        ends = looked_up(times, index), looked_up(times, index + 1)
        x = way.noise(ctx.data["x0"], ctx.normal("eps"), ends[0])
        return imitated(ctx, field, index, x, ends, lots)[0]

    def imitate_all(ctx: Context) -> Array:
        student = ctx.nets.student
        times, field, lots = prepared(ctx, (steps,))
        x = student.path.start(ctx.normal("start"), t=times[0])
        made = jax.eval_shape(
            lambda: POLICIES[policy](student, ctx.cond, x, times[0], times[1]).means
        )
        shape = (ctx.batch_size, steps, made.shape[1])
        lots["drop"] = ctx.uniform("drop", shape)
        lots = {name: jnp.moveaxis(lot, 1, 0) for name, lot in lots.items()}

        def one(x: Array, step: tuple[Any, ...]) -> tuple[Array, Array]:
            index, t, end, lots = step
            ends = ctx.zeros() + t, ctx.zeros() + end
            values, after = imitated(ctx, field, index, x, ends, lots)
            return after.astype(x.dtype), values

        order = jnp.arange(steps), times[:-1], times[1:], lots
        values = jax.lax.scan(one, x, order)[1]
        shares = unshifted(student.path, times, shift)
        return jnp.sum((shares[:-1] - shares[1:])[:, None] * values, axis=0)

    return check(
        Method(
            name="pi_flow",
            roles={
                "student": Role(network="policy"),
                "teacher": TEACHER._replace(needs=guidance_needs(guidance)),
            },
            phases=(
                Phase(
                    "student",
                    ("student",),
                    (Term("imitate", imitate_all if data_free else imitate),),
                ),
            ),
            batch=frozenset(() if data_free else {"x0"}),
            sampling=Sampling(
                segments,
                Deterministic(),
                view=PolicyView(sampling_substeps, policy, shift, temperature),
                steps=steps,
            ),
            cite=(PI_FLOW,),
        )
    )


def _closed(ends: Array) -> Array:
    """Sorted places ``[B, n]`` with 1 as the last."""
    return jnp.pad(ends, ((0, 0), (0, 1)), constant_values=1.0)


def _gaps(ends: Array) -> Array:
    """Differences of sorted places ``[B, n]``, the first from 0."""
    return jnp.diff(jnp.pad(ends, ((0, 0), (1, 0))), axis=1)
