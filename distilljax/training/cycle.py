"""One training cycle as one program: phases, followers, evaluation EMAs.

The batch of a cycle is a mapping of arrays ``[n, accumulate, B, ...]`` with
``n = distilljax.method.batches(phases)`` batches in the order in which the phases take
them; ``accumulate * B`` is the batch size of the config. Data of a term is one batch
``[batch size, ...]``, or one microbatch when its roles accumulate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distilljax.core.method import Follow, Method, Phase
from distilljax.diffusion.times import value_at
from distilljax.training.config import TrainConfig
from distilljax.training.roles import Setup, make_setup
from distilljax.training.state import Params, TrainState, state_shardings
from distilljax.training.update import Update, all_params, mean_over

Array = jax.Array
Metrics = dict[str, Array]
Frozen = Mapping[str, Params]
Data = Mapping[str, Any]
Cycle = Callable[[TrainState, Frozen, Data], tuple[TrainState, Metrics]]


class _Slot(NamedTuple):
    """A phase and the first batch that it takes."""

    phase: Phase
    start: int


def _slots(phases: tuple[Phase, ...]) -> tuple[_Slot, ...]:
    out, taken = [], 0
    for phase in phases:
        out.append(_Slot(phase, taken if phase.fresh else taken - 1))
        taken += phase.repeat if phase.fresh else 0
    return tuple(out)


def _minibatched(collected: Data, repeat: int, size: int) -> tuple[dict, dict]:
    """Collected results to split over repeats ``[repeat, B, ...]``, and the others."""
    split, whole = {}, {}
    for name, value in collected.items():
        flat = jax.tree.leaves(value)
        if repeat > 1 and flat and all(x.shape[:1] == (repeat * size,) for x in flat):
            split[name] = jax.tree.map(
                lambda x: x.reshape(repeat, size, *x.shape[1:]), value
            )
        else:
            whole[name] = value
    return split, whole


def phase_update(
    setup: Setup,
    phase: Phase,
    state: TrainState,
    frozen: Frozen,
    batch: Data,
    collected: Data,
    *,
    start: int = 0,
    writers: dict[str, str] | None = None,
) -> tuple[TrainState, dict[str, Any], Metrics]:
    """All repeats of one phase.

    Args:
      setup: what the programs of a run share.
      phase: trains roles on terms, or collects.
      state: the state; ``step`` is the cycle.
      frozen: parameters of frozen roles.
      batch: batches of the cycle, ``[n, accumulate, B, ...]``.
      collected: results of earlier collect phases of the cycle.
      start: first batch that the phase takes.
      writers: who writes which memory entry, filled while tracing.

    Returns:
      ``(state, collected results, metrics averaged over repeats)``.
    """
    update = Update(setup, phase, state, frozen, {} if writers is None else writers)
    repeat = phase.repeat
    split, whole = _minibatched(collected, repeat, setup.config.batch_size)

    def pick(tree, index):
        return jax.tree.map(lambda x: x[index], tree)

    def one(carry, index, batch, pieces):
        have = {**whole, **pieces}
        if phase.trains:
            carry, metrics = update(carry, batch, have, index)
            return carry, ({}, metrics)
        *kept, memory = carry
        new, metrics, memory = update.collect(kept[0], memory, batch, have, index)
        return (*kept, memory), (new, metrics)

    carry = (
        {role: state.params[role] for role in phase.trains},
        {role: state.opt[role] for role in phase.trains},
        {role: state.counters[role] for role in phase.trains},
        state.memory,
    )
    if repeat == 1:
        zero = jnp.zeros((), jnp.int32)
        carry, (new, metrics) = one(carry, zero, pick(batch, start), split)
    else:
        fixed = None if phase.fresh else pick(batch, start)
        fresh = pick(batch, slice(start, start + repeat)) if phase.fresh else None

        def body(carry, xs):
            index, batch, pieces = xs
            return one(carry, index, batch if phase.fresh else fixed, pieces)

        carry, (new, metrics) = jax.lax.scan(
            body, carry, (jnp.arange(repeat), fresh, split)
        )
        new = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), new)
        metrics = mean_over(metrics)
    params, opt, counters, memory = carry
    state = state._replace(
        params={**state.params, **params},
        opt={**state.opt, **opt},
        counters={**state.counters, **counters},
        memory=memory,
    )
    return state, new, metrics


def _mixed(decay: Array, old: Params, new: Params) -> Params:
    def mix(a, b):
        kind = jnp.promote_types(a.dtype, jnp.float32)
        d = decay.astype(kind)
        return (d * a.astype(kind) + (1.0 - d) * b.astype(kind)).astype(a.dtype)

    return jax.tree.map(mix, old, new)


def _followed(rule: Follow, old: Params, of: Params, step: Array) -> Params:
    def updated(old, of):
        if not callable(rule.decay) and rule.decay == 0:
            return jax.tree.map(lambda a, b: b.astype(a.dtype), old, of)
        return _mixed(value_at(rule.decay, step), old, of)

    if rule.every == 1:
        return updated(old, of)
    due = (step + 1) % rule.every == 0
    # cond instead of where: off-cycles must not read both trees.
    return jax.lax.cond(due, updated, lambda old, of: old, old, of)


def follow(
    setup: Setup, state: TrainState, frozen: Frozen, after: str | None
) -> TrainState:
    """Updates the roles that follow another after a phase; None: at the end."""
    for name, role in setup.method.roles.items():
        rule = role.follow
        if rule is None or rule.after != after:
            continue
        of = all_params(setup, state.params, frozen, state.step)[rule.of]
        new = _followed(rule, state.params[name], of, state.step)
        state = state._replace(params={**state.params, name: new})
    return state


def _finish(setup: Setup, state: TrainState, frozen: Frozen):
    """End of a cycle: followers, evaluation EMAs, counters."""
    state = follow(setup, state, frozen, None)
    ema, config = {}, setup.config
    for role, old in state.ema.items():
        decay = config.role(role).ema_decay(state.step, config.batch_size)
        ema[role] = _mixed(decay, old, state.params[role])
    metrics = {f"skipped/{r}": c["skipped"] for r, c in state.counters.items()}
    rows = [c["in_a_row"] for c in state.counters.values()]
    metrics["skipped_in_a_row"] = jnp.max(jnp.stack(rows))
    return state._replace(ema=ema, step=state.step + 1), metrics


def _gathered(metrics: Metrics, phase: str, new: Metrics) -> Metrics:
    """Adds a phase's metrics; a role trained in two phases gets two norms."""
    out = dict(metrics)
    for name, value in new.items():
        out[f"{name}/{phase}" if name in out else name] = value
    return out


def _advance(setup, slots, index, writers, state, collected, frozen, batch):
    """One phase with its followers, and the end of the cycle after the last one."""
    phase, start = slots[index]
    with setup.around():
        state, new, metrics = phase_update(
            setup, phase, state, frozen, batch, collected, start=start, writers=writers
        )
    state = follow(setup, state, frozen, phase.name)
    clash = sorted(set(new) & set(collected))
    if clash:
        raise ValueError(f"phase {phase.name!r} collects {clash} a second time")
    if index == len(slots) - 1:
        state, more = _finish(setup, state, frozen)
        metrics = {**metrics, **more}
    return state, {**collected, **new}, metrics


def run_cycle(
    setup: Setup,
    phases: tuple[Phase, ...],
    state: TrainState,
    frozen: Frozen,
    batch: Data,
) -> tuple[TrainState, Metrics]:
    """One cycle as a pure function; see `build_cycle`."""
    slots, writers = _slots(phases), {}
    metrics, collected = {}, {}
    for index, slot in enumerate(slots):
        state, collected, new = _advance(
            setup, slots, index, writers, state, collected, frozen, batch
        )
        metrics = _gathered(metrics, slot.phase.name, new)
    return state, metrics


def build_cycle(setup: Setup, phases: tuple[Phase, ...]) -> Cycle:
    """Compiles one cycle of phases.

    Args:
      setup: what the programs of a run share.
      phases: the phases of the cycle.

    Returns:
      ``(state, frozen, batch) -> (state, metrics)``, with the state donated. For
      ``fuse="cycle"`` it is one jitted function.
    """
    whole, places = setup.replicated, state_shardings(setup)
    if setup.config.fuse == "cycle":
        one = functools.partial(run_cycle, setup, phases)
        out = None if whole is None else (places, whole)
        return jax.jit(one, donate_argnums=0, out_shardings=out)
    slots, writers = _slots(phases), {}
    programs = [
        jax.jit(
            functools.partial(_advance, setup, slots, index, writers),
            donate_argnums=0,
            out_shardings=None if whole is None else (places, None, whole),
        )
        for index in range(len(slots))
    ]

    def by_phase(state, frozen, batch):
        metrics, collected = {}, {}
        for slot, program in zip(slots, programs, strict=True):
            state, collected, new = program(state, collected, frozen, batch)
            metrics = _gathered(metrics, slot.phase.name, new)
        return state, metrics

    return by_phase


def make_cycle(
    method: Method,
    networks: Mapping[str, Any],
    config: TrainConfig,
    *,
    sample_shape: tuple[int, ...],
    phases: tuple[Phase, ...] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Cycle:
    """`build_cycle` from a method and its networks; default its own phases."""
    setup = make_setup(method, networks, config, sample_shape, mesh)
    return build_cycle(setup, method.phases if phases is None else phases)
