"""Checkpoints of a run: everything that it needs to continue bit for bit.

A step holds three items: ``state`` (roles, optimizers, followers, EMAs, memory, key),
``data`` (state of the data iterator) and ``meta`` (config, method, versions and a
fingerprint of the state, by which a damaged checkpoint is known).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from distilljax import storage
from distilljax.training import distributed
from distilljax.training.config import CheckpointConfig, TrainConfig
from distilljax.training.state import TrainState, leaves

_HARMLESS = (
    "mesh",
    "log_every",
    "logging",
    "sample_every",
    "evaluate_every",
    "checkpoint",
    "max_skipped",
)


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
      step: cycles done.
      state: the state, placed as the abstract state says.
      data: state of the data iterator.
      meta: what was saved with it.
    """

    step: int
    state: TrainState
    data: Any
    meta: dict[str, Any]


@jax.jit
def _mixed(leaf: jax.Array, index: jax.Array) -> jax.Array:
    """Sum of the leaf's words, each hashed with its place (murmur3's finalizer)."""
    stride, first, second = (
        jnp.uint32(c) for c in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)
    )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = 8 * min(leaf.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(leaf, f"uint{width}").reshape(-1)
    place = jnp.arange(words.size, dtype=jnp.uint32) * stride + index
    mixed = (words.astype(jnp.uint32) ^ place) * first
    mixed = (mixed ^ (mixed >> 13)) * second
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def fingerprint(tree: Any) -> int:
    """A number that changes when a leaf does."""
    sums = [_mixed(x, np.uint32(i)) for i, x in enumerate(jax.tree.leaves(tree))]
    total = 0
    for value in jax.device_get(sums):
        total = (total * 31 + int(value)) % 2**32
    return total


def differing(old: Any, new: Any, where: str = "") -> list[str]:
    """Keys at which two nested dicts differ, as ``student.lr: 0.1 -> 0.2``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        out = []
        for key in sorted({*old, *new}, key=str):
            inner = f"{where}.{key}" if where else str(key)
            out += differing(old.get(key, "(none)"), new.get(key, "(none)"), inner)
        return out
    return [] if old == new else [f"{where}: {old} -> {new}"]


def _without(record: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    """The record without keys of its sections."""
    return {
        name: {k: v for k, v in section.items() if k not in keys}
        if isinstance(section, Mapping)
        else section
        for name, section in record.items()
    }


def _started(folder: epath.Path) -> bool:
    """Whether a run left more than its config in the folder."""
    saves, metrics = folder / "checkpoints", folder / "metrics.jsonl"
    saved = saves.is_dir() and any(saves.iterdir())
    return saved or (metrics.is_file() and metrics.stat().length > 0)


def claim(folder: epath.Path, config: TrainConfig, card: Mapping[str, Any]) -> None:
    """Makes a run folder this config's, or refuses.

    Of several processes the first one writes, and all refuse if one does.

    Args:
      folder: run folder; ``config.json`` in it says whose it is.
      config: the training config.
      card: what else determines the run (method, options, source, networks).

    Raises:
      ValueError: if the folder holds a run of another config, lists what differs; if
        processes have different configs, or one does not see the folder.
    """
    # A round trip, so that what was read and what is new compare equal.
    record = json.loads(json.dumps({"train": config.to_dict(), **card}, default=str))
    folder = epath.Path(folder)
    first, *others = distributed.of_all(record)
    for process, other in enumerate(others, 1):
        if changed := differing(first, other):
            raise ValueError(
                f"process {process} was started with another config than process 0 "
                f"(0 -> {process}): {'; '.join(changed)}"
            )
    path, text = folder / "config.json", json.dumps(record, indent=2, sort_keys=True)
    with distributed.together("take the run folder"):
        if distributed.is_first():
            _refuse_another(path, config, record)
            storage.write_atomic(path, text + "\n")
    seen = distributed.of_all(path.is_file() and path.read_text() == text + "\n")
    blind = [process for process, sees in enumerate(seen) if not sees]
    if blind:
        raise ValueError(
            f"processes {blind} do not see the run folder {str(folder)!r} that process "
            "0 made; it must lie on storage that all of them share"
        )


def _refuse_another(
    path: epath.Path, config: TrainConfig, record: dict[str, Any]
) -> None:
    folder = path.parent
    if path.exists() and _started(folder):
        old = json.loads(path.read_text())
        ignored: set[str] = set(_HARMLESS)
        sections = [config.default, *config.roles.values()]
        if all(section.schedule.open_ended for section in sections):
            ignored.add("cycles")
        changed = differing(_without(old, ignored), _without(record, ignored))
        if changed:
            raise ValueError(
                f"run folder {str(folder)!r} holds a run of another config, which is "
                "left as it is. Different (there -> now): "
                + "; ".join(changed)
                + ". Choose another folder, or the old config to continue."
            )


class _Mismatch(Exception):
    """A whole checkpoint of another state."""


def _described(tree: Any) -> dict[str, str]:
    return {
        path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in leaves(tree).items()
    }


class Checkpoints:
    """The checkpoints of a run folder; saving is asynchronous."""

    def __init__(self, folder: epath.Path, config: CheckpointConfig):
        """Opens ``folder/checkpoints`` and sets partial checkpoints aside."""
        self._root = storage.absolute(folder) / "checkpoints"
        self._aside = self._root.parent / "damaged"
        with distributed.together("open the checkpoints"):
            if distributed.is_first():
                self._root.mkdir(parents=True, exist_ok=True)
                for path in sorted(self._root.iterdir()):
                    if not path.name.isdigit():
                        self._set_aside(
                            path, "is partial: the run was ended while it was saved"
                        )
        self._manager = ocp.CheckpointManager(
            self._root,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_preservation(config),
                enable_async_checkpointing=True,
                create=True,
            ),
            item_names=("state", "data", "meta"),
        )

    @property
    def steps(self) -> list[int]:
        """Saved steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: TrainState,
        data: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save; a step that exists is left as it is.

        Args:
          step: cycles done.
          state: the state; it may be donated as soon as this returns.
          data: state of the data iterator, JSON or bytes.
          meta: JSON values.
          metrics: metrics of the evaluation hook, for the policy ``best``.
        """
        if step in self._manager.all_steps():
            return
        if jax.default_backend() == "cpu":
            # Host copies of CPU arrays share memory that the next cycle overwrites.
            state = jax.tree.map(jnp.copy, state)
        meta = {**meta, "fingerprint": fingerprint(state), "leaves": _described(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave({"state": _packed(data)}),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=None if metrics is None else dict(metrics),
        )

    def restore(self, abstract: TrainState) -> Restored | None:
        """The newest whole checkpoint, None if there is none.

        Damaged ones are named in a warning and moved to ``damaged``. One that a single
        process cannot read is damaged for all.

        Args:
          abstract: shapes, dtypes and shardings of the state.
        """
        for step in reversed(distributed.of_first(self.steps)):
            try:
                return self._read(step, abstract)
            except _Mismatch as error:
                raise ValueError(str(error)) from None
            except Exception as error:  # any other failure to read means damage
                reason = str(error).strip().split("\n")[0][:200]
                with distributed.together(f"set checkpoint {step} aside"):
                    if distributed.is_first():
                        self._set_aside(
                            self._root / str(step),
                            f"is damaged ({type(error).__name__}: {reason})",
                        )
                self._manager.reload()
        return None

    def _read(self, step: int, abstract: TrainState) -> Restored:
        path, args = self._root / str(step), ocp.args
        with distributed.together(f"read checkpoint {step}"), _reader() as reader:
            parts = reader.restore(
                path, args.Composite(data=args.JsonRestore(), meta=args.JsonRestore())
            )
            meta = parts["meta"]
            changed = differing(meta["leaves"], _described(abstract))
            if changed:
                raise _Mismatch(
                    f"checkpoint {step} in {str(self._root)!r} holds another state "
                    f"(there -> now): {'; '.join(changed)}"
                )
            state = reader.restore(
                path, args.Composite(state=args.StandardRestore(abstract))
            )["state"]
        if fingerprint(state) != meta["fingerprint"]:
            raise ValueError("its content does not match its fingerprint")
        return Restored(step, state, _unpacked(parts["data"]["state"]), meta)

    def _set_aside(self, path: epath.Path, what: str) -> None:
        self._aside.mkdir(exist_ok=True)
        count = len(list(self._aside.iterdir()))
        target = self._aside / f"{count:03d}-{path.name}"
        path.rename(target)
        warnings.warn(
            f"checkpoint {str(path)!r} {what}; moved to {str(target)!r}, using an "
            "older one or starting again",
            stacklevel=3,
        )

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def _reader() -> ocp.Checkpointer:
    """Reads without the other processes: one that fails keeps none of them waiting."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"alone_{me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        "state",
        "data",
        "meta",
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _preservation(config: CheckpointConfig) -> Any:
    policy = ocp.checkpoint_managers
    keep: list[Any] = [policy.LatestN(config.keep)]
    if config.best is not None:
        name = config.best
        keep = [
            policy.LatestN(1),
            policy.BestN(
                get_metric_fn=lambda metrics: metrics[name],
                reverse=config.best_mode == "min",
                n=config.keep,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    if config.keep_period is not None:
        keep.append(policy.EveryNSteps(config.keep_period))
    return policy.AnyPreservationPolicy(keep)


def _packed(data: Any) -> Any:
    if isinstance(data, bytes):
        return {"bytes": data.decode("latin1")}
    return {"json": json.loads(json.dumps(data, default=_plain))}


def _unpacked(data: Any) -> Any:
    return data["bytes"].encode("latin1") if "bytes" in data else data["json"]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)
