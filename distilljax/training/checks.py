"""Checks at the start of a run: the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distilljax.core.method import Method, batches
from distilljax.runtime.errors import unknown
from distilljax.training import distributed
from distilljax.training.claim import changes
from distilljax.training.config import TrainConfig
from distilljax.training.digests import not_finite
from distilljax.training.placement import share
from distilljax.training.roles import Setup
from distilljax.training.state import TrainState


def check_source(method: Method, data: Any) -> None:
    """Checks a source before anything is read from it.

    Raises:
      ValueError: if it is empty or lacks fields that the method needs.
    """
    if hasattr(data, "__next__"):
        return
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise ValueError(
            "data must be a source (len and items) or an iterator over batches, got "
            f"{type(data).__name__}"
        )
    if len(data) == 0:
        raise ValueError("data must hold at least one sample, got an empty source")
    fields = getattr(data, "fields", None)
    if fields is not None:
        _check_fields(method, fields)


def _check_fields(method: Method, fields: Any) -> None:
    for name in sorted(method.batch):
        if name not in fields:
            raise ValueError(
                f"method {method.name!r} needs data fields {sorted(method.batch)}: "
                + unknown("field", name, fields)
            )


def sample_shape(first: Mapping[str, Any], given: tuple[int, ...] | None, data: Any):
    """Shape of one sample: given, of the source, or of ``x0`` in the first batch."""
    shape = getattr(data, "sample_shape", None) if given is None else given
    if shape is None and "x0" in first:
        shape = np.shape(first["x0"])[3:]
    if shape is None:
        raise ValueError(
            f"sample_shape must be given: the data has no 'x0', only {sorted(first)}"
        )
    return tuple(shape)


def shapes(first: Mapping[str, Any], mesh: Mesh | None = None) -> dict[str, Any]:
    """Shapes and dtypes of a batch of all processes, as the devices hold them."""
    held = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, dict(first)))
    count = share(mesh)[1]

    def whole(part: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        stack, accumulate, batch, *rest = part.shape
        shape = (stack, accumulate, batch * count, *rest)
        return jax.ShapeDtypeStruct(shape, part.dtype)

    return held if count == 1 else jax.tree.map(whole, held)


def check_batch(setup: Setup, first: Mapping[str, Any]) -> None:
    """Checks the first batch of a run.

    Raises:
      ValueError: on missing fields, another layout, values that are not finite, or
        labels that a network does not have.
    """
    method, config = setup.method, setup.config
    _check_fields(method, first)
    n = batches(method.phases_at(0))
    batch = config.batch_size // (setup.stacked * share(setup.mesh)[1])
    lead = (n, setup.stacked, batch)
    for name, value in first.items():
        for leaf in jax.tree.leaves(value):
            shape = np.shape(leaf)
            if shape[1:3] != lead[1:] or shape[0] < n:
                raise ValueError(
                    f"data field {name!r} must have leading axes [batches, accumulate, "
                    f"batch] = {list(lead)}, got shape {shape}"
                )
            array = np.asarray(leaf)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                count = int((~np.isfinite(array)).sum())
                raise ValueError(
                    f"data field {name!r} must be finite, got {count} NaN or infinite "
                    "values in the first batch"
                )
    x0 = first.get("x0")
    if x0 is not None and np.shape(x0)[3:] != setup.sample_shape:
        raise ValueError(
            f"data field 'x0' must hold samples of shape {setup.sample_shape}, got "
            f"{np.shape(x0)[3:]}"
        )
    _check_labels(setup, first.get("cond"))
    _check_dropout(setup, first.get("cond"))


def _check_dropout(setup: Setup, cond: Any) -> None:
    """Refuses networks that declare dropout and compute the same without its key."""
    shape = (1, *setup.sample_shape)
    x, t = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (1,)))
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *np.shape(leaf)[3:]), leaf.dtype), cond
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    seen = set()
    for role in sorted(setup.with_dropout):
        network = setup.networks[role]
        if network.apply is None or network.name in seen:
            continue
        seen.add(network.name)

        def train(rng, params, x, t, cond, apply=network.apply):
            return apply(params, x, t, cond, rng=rng)

        params = jax.eval_shape(network.init, key)
        traced = jax.make_jaxpr(train)(key, params, x, t, one).jaxpr
        if not any(traced.invars[0] is v for eqn in traced.eqns for v in eqn.invars):
            raise ValueError(
                f"role {role!r}: network {network.name!r} declares 'dropout', and its "
                "apply never reads rng, so that it would train without dropout; pass "
                "rng= on to the layers that drop, or do not declare it"
            )


def _check_labels(setup: Setup, cond: Any) -> None:
    if cond is None or not hasattr(cond, "dtype") or cond.dtype.kind not in "iu":
        return
    low, high = int(np.min(cond)), int(np.max(cond))
    for role, network in setup.networks.items():
        classes = network.num_classes
        if classes is not None and (low < 0 or high >= classes):
            raise ValueError(
                f"labels in 'cond' must lie in 0 .. {classes - 1} for network "
                f"{network.name!r} of role {role!r}, got {low} .. {high}"
            )


def check_classes(setup: Setup, data: Any) -> None:
    """Checks the number of classes of a source against the networks.

    Raises:
      ValueError: if a network has fewer classes than the source.
    """
    count = getattr(data, "num_classes", None)
    if count is None:
        return
    for role, network in setup.networks.items():
        if network.num_classes is not None and network.num_classes < count:
            raise ValueError(
                f"data has {count} classes, and network {network.name!r} of role "
                f"{role!r} has {network.num_classes}; build it with num_classes={count}"
            )


def check_setup(setup: Setup) -> None:
    """Checks roles, config and sizes against each other.

    Raises:
      ValueError: naming the role, phase or key.
    """
    method, config = setup.method, setup.config
    for role in config.roles:
        if role not in method.trained:
            raise ValueError(
                f"config has settings for role {role!r}, which method {method.name!r} "
                f"does not train; it trains {', '.join(method.trained)}"
            )
    for role in ("teacher", "student"):
        network = setup.networks.get(role)
        if network is not None and network.apply is not None and network.path is None:
            raise ValueError(
                f"role {role!r}: network {network.name!r} does not say on which path "
                "it was trained and what it predicts; build it with path= and "
                "prediction=, for example path=paths.linear(), prediction='velocity'"
            )
    names = {phase.name for phases in method.rounds for phase in phases}
    for name, role in method.roles.items():
        after = None if role.follow is None else role.follow.after
        if after is not None and after not in names:
            raise ValueError(
                f"role {name!r} follows after a phase: "
                + unknown("phase", after, names)
            )
    _check_sizes(setup)


def _check_sizes(setup: Setup) -> None:
    config, stacked = setup.config, setup.stacked
    if config.batch_size % stacked:
        raise ValueError(
            f"batch_size must be a multiple of accumulate, got {config.batch_size} and "
            f"{stacked}"
        )
    for phases in setup.method.rounds:
        for phase in phases:
            micro = setup.accumulate(phase)
            if config.batch_size % (micro * config.rows):
                raise ValueError(
                    f"batch_size must be a multiple of accumulate x devices of the "
                    f"mesh along data and fsdp = {micro} x {config.rows} in phase "
                    f"{phase.name!r}, got {config.batch_size}"
                )
            coupled = [term.name for term in phase.terms if term.coupled]
            if micro > 1 and coupled:
                raise ValueError(
                    f"phase {phase.name!r} accumulates {micro} microbatches, and its "
                    f"terms {coupled} couple the samples of a batch, so that the "
                    f"result would be another one; set accumulate=1 for {phase.trains}"
                )
    if (config.batch_size // stacked) % config.rows:
        raise ValueError(
            f"batch_size / accumulate = {config.batch_size // stacked} must be a "
            f"multiple of the {config.rows} devices of the mesh along data and fsdp"
        )


def check_equal(frozen: int) -> None:
    """Checks that all processes were given the same frozen parameters.

    Raises:
      ValueError: if they differ.
    """
    found = distributed.of_all(frozen)
    other = [i for i, number in enumerate(found) if number != found[0]]
    if other:
        raise ValueError(
            f"params: processes {other} were given other parameters of the frozen "
            "roles (the teacher) than process 0; pass the same files to all"
        )


def check_frozen(now: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Checks that a run is continued with the parameters given it was started with.

    Args:
      now: fingerprints, ``frozen`` of the frozen roles and, for a teacher that is none
        of them, ``start``.
      meta: what was saved; an older version saved no ``start``.

    Raises:
      ValueError: if they differ.
    """
    if now["frozen"] != meta["frozen"]:
        raise ValueError(
            "params: the frozen roles (the teacher) have other parameters than when "
            "this run was started; pass the same ones, or choose another folder"
        )
    if now.get("start") != meta.get("start", now.get("start")):
        raise ValueError(
            "params: the teacher that roles of this run started from had other "
            "parameters; pass the same ones, or choose another folder"
        )


def check_run(
    step: int, meta: Mapping[str, Any], record: Mapping[str, Any], config: TrainConfig
) -> None:
    """Checks that a checkpoint is of this run and was not put into its folder.

    Args:
      step: of the checkpoint.
      meta: what was saved with it; one of an older version has no record.
      record: of this run.
      config: of this run.

    Raises:
      ValueError: if it is of another run.
    """
    changed = changes(meta["run"], record, config) if "run" in meta else []
    if changed:
        raise ValueError(
            f"checkpoint {step} is of another run than its folder's config.json (there "
            f"-> now): {'; '.join(changed)}. It is left as it is; move it away to use "
            "an older one, or choose another folder"
        )


def check_finite(params: Mapping[str, Any]) -> None:
    """Checks the parameters of frozen roles that a run starts with.

    Raises:
      ValueError: naming the role and its leaves that are not finite.
    """
    _refuse_broken(not_finite(dict(params)))


def check_start(state: TrainState) -> None:
    """Checks the parameters of the state that a run starts with; see `check_finite`.

    It looks at the whole state, whose fingerprint is the same program.
    """
    names = not_finite(state)
    head = "params/"
    _refuse_broken([name[len(head) :] for name in names if name.startswith(head)])


def _refuse_broken(names: list[str]) -> None:
    """Raises about the first role of paths ``role/leaf`` that are not finite."""
    if names:
        role = names[0].partition("/")[0]
        broken = [
            name[len(role) + 1 :] for name in names if name.startswith(role + "/")
        ]
        raise ValueError(
            f"role {role!r}: its parameters {_few(broken)} are not finite (NaN or "
            "infinite); pass those of a checkpoint that is sound, or repair the "
            "init of the network"
        )


def _few(names: list[str]) -> str:
    text = ", ".join(repr(name) for name in names[:4])
    return text + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def why_skipped(
    setup: Setup, step: int, metrics: Mapping[str, Any], kept: Any, batch: Any
) -> str:
    """What to say when too many updates in a row were skipped.

    Args:
      setup: what the programs share.
      step: the cycle.
      metrics: of that cycle.
      kept: trees of the state and the frozen parameters.
      batch: the newest batch.
    """
    counts = {k.split("/")[1]: v for k, v in metrics.items() if "skipped/" in k and v}
    roles = ", ".join(f"{role} {int(count)}" for role, count in counts.items())
    terms = sorted(k for k, v in metrics.items() if not np.isfinite(v).all())
    found = [f"terms and norms {_few(terms)}"] if terms else []
    fields, arrays = not_finite(batch), not_finite(kept)
    if fields:
        found.append(
            f"data fields {_few(fields)} of the newest batch (repair the source)"
        )
    if arrays:
        found.append(f"arrays {_few(arrays)} (start from others)")
    made = (
        "what the optimizer made of finite gradients (its eps may vanish in the dtype "
        "of a parameter: hold it in float32, or raise eps)"
    )
    safe = "" if arrays else "Parameters, optimizers, averages and memory are finite. "
    return (
        f"cycle {step}: {setup.config.max_skipped} updates in a row were not "
        f"finite and were skipped (by role, of the whole run: {roles}). Not finite "
        f"now: {'; '.join(found) or made}. Lower the learning rate, clip, "
        f"or raise max_skipped. {safe}Checkpoints are intact: the same call continues "
        "from the newest"
    )
