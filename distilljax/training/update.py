"""One update of a phase: the only gradient of the library.

A phase is terms on a context; nothing here knows a method. Randomness is keyed by
names: the key of a term is ``fold(phase key, repeat[, microbatch])`` folded with its
name, so that composing methods changes nobody's draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distilljax.core.binding import Bound, Nets
from distilljax.core.context import Context, fold_name, own_name
from distilljax.core.method import Out, Phase
from distilljax.diffusion.times import value_at
from distilljax.training import copies
from distilljax.training.guard import certain, guarded, kept, no_worse, norm_of
from distilljax.training.roles import Setup
from distilljax.training.state import Params, TrainState

Array = jax.Array
Metrics = dict[str, Array]
Data = Mapping[str, Any]


def all_params(
    setup: Setup,
    params: Mapping[str, Params],
    frozen: Mapping[str, Params],
    step: Array,
) -> dict[str, Params]:
    """Parameters of every role, derived ones included."""
    out = {**frozen, **params}
    for name, role in setup.method.roles.items():
        if role.derive is not None:
            out[name] = role.derive(out, step)
    return out


def joined(label: str, *parts: Data) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for part in parts:
        shared = sorted(set(out) & set(part))
        if shared:
            raise ValueError(
                f"{label}: data fields {shared} come from two of batch, collected "
                "results and draws; rename one"
            )
        out.update(part)
    return out


class Update:
    """One update of a phase: split into microbatches, differentiate, apply."""

    def __init__(
        self,
        setup: Setup,
        phase: Phase,
        state: TrainState,
        frozen: Mapping[str, Params],
        writers: dict[str, str],
    ):
        self.setup, self.phase, self.frozen = setup, phase, frozen
        self.writers = writers
        self.step, self.resting = state.step, state.params
        at = jax.random.fold_in(state.key, state.step)
        self.key = fold_name(at, own_name(phase.name))
        self.batch_size = setup.config.batch_size
        self.micro = setup.accumulate(phase)
        self.label = f"phase {phase.name!r}"

    def split(self, batch: Data, collected: Data) -> tuple[dict, dict]:
        """Data ``[micro, B / micro, ...]``, and what has no batch axis."""
        size = self.batch_size // self.micro

        def pieces(x: Array, lead: int) -> Array:
            x = x.reshape(self.micro, size, *x.shape[lead:])
            return self.setup.constrain(x[0])[None] if self.micro == 1 else x

        parts = {k: jax.tree.map(lambda x: pieces(x, 2), v) for k, v in batch.items()}
        whole = {}
        for name, value in collected.items():
            flat = jax.tree.leaves(value)
            if flat and all(x.ndim and x.shape[0] == self.batch_size for x in flat):
                parts[name] = jax.tree.map(lambda x: pieces(x, 1), value)
            else:
                whole[name] = value
        return parts, whole

    def context(
        self,
        params: Params,
        data: Data,
        memory,
        key: Array,
        repeat,
        rows: Params = None,
    ) -> Context:
        trees = all_params(
            self.setup, {**self.resting, **params}, self.frozen, self.step
        )
        networks, dropped = self.setup.networks, self.setup.with_dropout
        rows = copies.derived(self.setup, trees, rows or {}, self.step)
        bound = {
            name: Bound(
                name,
                networks[name],
                tree,
                key if name in dropped else None,
                rows.get(name),
            )
            for name, tree in trees.items()
        }
        ctx = Context(
            nets=Nets(bound),
            data=data,
            step=self.step,
            repeat=repeat,
            memory=memory,
            root=key,
            batch_size=self.batch_size // self.micro,
            sample_shape=self.setup.sample_shape,
            constrain=self.setup.constrain,
        )
        for name, draw in self.phase.draws.items():
            drawn = {name: draw(ctx.of(name))}
            seen = joined(self.label, ctx.data, drawn)
            ctx = dataclasses.replace(ctx, data=seen)
        return ctx

    def remember(self, memory: dict, owner: str, new: Mapping[str, Any]) -> dict:
        for name, value in new.items():
            owner_before = self.writers.setdefault(name, owner)
            if name not in memory or owner_before != owner:
                raise ValueError(
                    f"{owner} writes memory {name!r}, which "
                    + (
                        f"{owner_before} writes too; an entry has one writer"
                        if name in memory
                        else f"the method does not have: {sorted(memory)}"
                    )
                )
            value = jax.tree.map(
                lambda x, old: jnp.asarray(x, old.dtype).reshape(old.shape),
                value,
                memory[name],
            )
            memory = {**memory, name: value}
        return memory

    def terms(self, params, data, memory, key, repeat, counts, rows=None):
        """Weighted means of the terms ``[terms]``, with metrics and memory.

        Where there are ``rows``, gradients are those with respect to them, see
        `copies`.
        """
        if rows is not None:
            params = copies.whole(self.setup, params, rows)
        ctx = self.context(params, data, memory, key, repeat, rows)
        means, metrics, after = [], {}, memory
        for term in self.phase.terms:
            label = f"{self.phase.name}/{term.name}"
            out = term.loss(ctx.of(term.name))
            out = out if isinstance(out, Out) else Out(out)
            mask = None if term.mask is None else _field(ctx, label, term.mask)
            mean = _mean(label, out.values, mask, counts.get(term.mask))
            after = self.remember(after, f"term {label!r}", out.memory)
            metrics[label] = mean
            for name, value in out.metrics.items():
                metrics[f"{label}/{name}"] = jnp.asarray(value, jnp.float32)
            means.append(value_at(term.weight, self.step) * mean)
        vector = jnp.stack(means)
        metrics[f"{self.phase.name}/loss"] = jnp.sum(vector)
        return vector, (metrics, after)

    def gradients(self, params, *args, rows=None):
        """Gradients (by term if the phase merges), metrics and memory.

        They are those with respect to the ``rows`` of `copies`, by default the
        parameters' own.
        """
        rows = copies.spread(self.setup, params) if rows is None else rows
        if self.phase.merge is None:

            def total(rows):
                vector, aux = self.terms(params, *args, rows)
                return jnp.sum(vector), aux

            grads, aux = jax.grad(total, has_aux=True)(rows)
            return grads, *aux
        vector, pull, aux = jax.vjp(
            lambda rows: self.terms(params, *args, rows), rows, has_aux=True
        )
        ones = jnp.eye(len(self.phase.terms), dtype=vector.dtype)
        names = [term.name for term in self.phase.terms]
        return {n: pull(ones[i])[0] for i, n in enumerate(names)}, *aux

    def accumulated(self, params, parts, whole, memory, key, repeat):
        """Mean gradient over the microbatches."""
        names = {term.mask for term in self.phase.terms if term.mask in parts}
        counts = {n: jnp.mean(jnp.asarray(parts[n], jnp.float32)) for n in names}
        rows = copies.spread(self.setup, params)
        if self.micro == 1:
            data = {k: jax.tree.map(lambda x: x[0], v) for k, v in parts.items()}
            grads, metrics, memory = self.gradients(
                params, {**data, **whole}, memory, key, repeat, counts, rows=rows
            )
            return self.summed(grads), metrics, memory

        def body(carry, xs):
            sums, memory = carry
            index, data = xs
            data = jax.tree.map(self.setup.constrain, data)
            grads, metrics, memory = self.gradients(
                params,
                {**data, **whole},
                memory,
                jax.random.fold_in(key, index),
                repeat,
                counts,
                rows=rows,
            )
            return (jax.tree.map(jnp.add, sums, grads), memory), metrics

        zeros = copies.zeros(self.setup, rows)
        if self.phase.merge is not None:
            zeros = {term.name: zeros for term in self.phase.terms}
        indices = jnp.arange(self.micro)
        (sums, memory), metrics = jax.lax.scan(body, (zeros, memory), (indices, parts))
        mean = jax.tree.map(lambda g: g / self.micro, self.summed(sums))
        return mean, mean_over(metrics), memory

    def summed(self, grads):
        """Gradients summed over devices, where the parameters live."""
        if self.phase.merge is None:
            return copies.summed(self.setup, grads)
        return {term: copies.summed(self.setup, g) for term, g in grads.items()}

    def __call__(self, carry, batch: Data, collected: Data, repeat: Array):
        """``(params, opt, counters, memory)`` of the trained roles after one update."""
        params, opt, counters, memory = carry
        parts, whole = self.split(batch, collected)
        joined(self.label, parts, whole)
        key = jax.random.fold_in(self.key, repeat)
        grads, metrics, new = self.accumulated(
            params, parts, whole, memory, key, repeat
        )
        sound = fine = no_worse(new, memory)
        if self.phase.merge is not None:
            grads = self.phase.merge(grads, self.step)
        params, opt, counters = dict(params), dict(opt), dict(counters)
        for role in self.phase.trains:
            with jax.named_scope("optimizer"):
                params[role], opt[role], counters[role], norm, done = self.applied(
                    role, grads[role], params[role], opt[role], counters[role], sound
                )
            metrics[f"grad_norm/{role}"] = norm
            fine &= done
        return (params, opt, counters, kept(fine, new, memory)), metrics

    def applied(self, role, grads, params, opt, counters, sound):
        """One optimizer step, guarded; see `guard`.

        Nothing changes if the gradient, a new parameter or the new state of the
        optimizer is not finite, or if the update is not ``sound`` otherwise.
        """
        grads = self.setup.placed(role, grads)
        norm, factor = norm_of(grads), jnp.float32(1.0)
        clip = self.setup.config.role(role).clip
        if clip is not None:
            factor = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))

        def step(grads, opt, params, factor):
            if clip is not None:
                grads = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
            updates, opt = self.setup.optimizers[role].update(grads, opt, params)
            return optax.apply_updates(params, updates), opt

        sound &= jnp.isfinite(norm)
        sure = certain(self.setup.optimizers[role], norm, grads, params, opt)
        params, opt, done = guarded(step, grads, params, opt, factor, sound, sure)
        missed = jnp.where(done, 0, 1)
        counters = {
            "skipped": counters["skipped"] + missed,
            "in_a_row": (counters["in_a_row"] + missed) * missed,
        }
        return params, opt, counters, norm, done

    def collect(self, params, memory, batch: Data, collected: Data, repeat: Array):
        """Results of a collect phase for one batch, metrics and memory."""
        assert self.phase.collect is not None
        parts, whole = self.split(batch, collected)
        data = {k: jax.tree.map(lambda x: x[0], v) for k, v in parts.items()}
        key = jax.random.fold_in(self.key, repeat)
        ctx = self.context(params, {**data, **whole}, memory, key, repeat)
        found: Any = self.phase.collect(ctx.of("collect"))
        out = found if isinstance(found, Out) else Out(found)
        owner = f"collect of phase {self.phase.name!r}"
        metrics = {f"{self.phase.name}/{k}": v for k, v in out.metrics.items()}
        if out.memory:
            new = self.remember(memory, owner, out.memory)
            fine = no_worse(new, memory)
            memory = kept(fine, new, memory)
            missed = 1.0 - fine.astype(jnp.float32)
            metrics[f"{self.phase.name}/memory_skipped"] = missed
        values: Any = out.values
        return dict(values), metrics, memory


def mean_over(metrics: Metrics) -> Metrics:
    return {name: jnp.mean(value, axis=0) for name, value in metrics.items()}


def _field(ctx: Context, label: str, name: str) -> Array:
    if name not in ctx.data:
        raise ValueError(f"term {label!r}: no mask {name!r} in {sorted(ctx.data)}")
    return jnp.asarray(ctx.data[name], jnp.float32)


def _mean(label: str, values: Array, mask: Array | None, count: Array | None) -> Array:
    """Mean, or sum over the mask divided by its size (over all microbatches)."""
    values = jnp.asarray(values)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if mask is None:
        return jnp.mean(values)
    if values.shape[: mask.ndim] != mask.shape:
        raise ValueError(
            f"term {label!r}: mask {mask.shape} must match the leading axes of the "
            f"values {values.shape}"
        )
    wide = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    share = jnp.mean(mask) if count is None else count
    kept = jnp.where(wide > 0, values, 0.0) * wide
    return jnp.mean(kept) / jnp.maximum(share, 1e-12)
