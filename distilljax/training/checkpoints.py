"""Checkpoints of a run: everything that it needs to continue bit for bit.

A step holds three items: ``state`` (roles, optimizers, followers, EMAs, memory, key),
``data`` (state of the data iterator) and ``meta`` (config, method, versions and a
fingerprint of the state, by which a damaged checkpoint is known).
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from distilljax import storage
from distilljax._version import __version__
from distilljax.training import versions
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
    "data_timeout",
)


# Names of checkpoints that are being saved: a step and a suffix.
_PARTIAL = re.compile(r"\d+\.")


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


def _record(folder: epath.Path) -> dict[str, Any] | None:
    """Record of the run in a folder; of its newest checkpoint if ``config.json`` is no
    more to be read, None without either.
    """
    path = folder / "config.json"
    if path.exists():
        try:
            return versions.read_record(path)
        except ValueError as error:
            found = _saved_record(folder)
            if found is None:
                raise
            warnings.warn(
                f"{str(path)!r} is damaged ({error.__cause__}); the record in the "
                "newest checkpoint stands for it",
                stacklevel=4,
            )
            return found
    return _saved_record(folder)


def _saved_record(folder: epath.Path) -> dict[str, Any] | None:
    found = (folder / "checkpoints").glob("*/meta/metadata")
    steps = {int(p.parent.parent.name): p for p in found if _is_step(p.parent.parent)}
    for step in sorted(steps, reverse=True):
        try:
            return json.loads(steps[step].read_text())["run"]
        except (ValueError, KeyError, TypeError):
            continue
    return None


def _is_step(path: epath.Path) -> bool:
    return path.name.isdigit() and path.is_dir()


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], config: TrainConfig
) -> list[str]:
    """What makes the records of two runs those of different ones.

    Args:
      old: record of a run, of this version of the library or another.
      new: record of this one.
      config: of this one.

    Raises:
      ValueError: if ``old`` has settings that this version lacks.
    """
    ignored: set[str] = set(_HARMLESS)
    if all(s.schedule.open_ended for s in [config.default, *config.roles.values()]):
        ignored.add("cycles")
    old, new = dict(old), dict(new)
    wrote = versions.another(old)
    for record in (old, new):
        record.pop("version", None)
    if isinstance(old.get("train"), Mapping):
        beyond = versions.unknown_keys(old["train"])
        if beyond:
            raise ValueError(
                f"the run was started by {wrote or 'another version of distilljax'}, "
                f"and distilljax {__version__} does not know its settings train."
                f"{', train.'.join(beyond)}; continue it with that version, or choose "
                "another folder"
            )
        old["train"] = versions.filled(old["train"])
    changed = differing(_without(old, ignored), _without(new, ignored))
    if changed and wrote:
        changed[-1] += (
            f" (there {wrote} ran, here {__version__}: a setting that the older one "
            "lacked stands with its default, '(none)' is a key that one of them lacks)"
        )
    return changed


def claim(
    folder: epath.Path, config: TrainConfig, card: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes a run folder this config's, or refuses.

    Args:
      folder: run folder; ``config.json`` in it says whose it is.
      config: the training config.
      card: what else determines the run (method, options, source, networks).

    Returns:
      The record of the run, JSON values, as ``config.json`` holds it.

    Raises:
      ValueError: if the folder holds a run of another config, listing what differs, or
        of a newer version; and if its ``config.json`` is damaged.
    """
    folder = epath.Path(folder)
    path = folder / "config.json"
    # A round trip, so that what was read and what is new compare equal.
    record = {"version": __version__, "train": config.to_dict(), **card}
    record = json.loads(json.dumps(record, default=str))
    old = _record(folder) if _started(folder) else None
    if old is not None:
        try:
            changed = changes(old, record, config)
        except ValueError as error:
            raise ValueError(f"run folder {str(folder)!r}: {error}") from None
        if changed:
            raise ValueError(
                f"run folder {str(folder)!r} holds a run of another config, which is "
                "left as it is. Different (there -> now): "
                + "; ".join(changed)
                + ". Choose another folder, or the old config to continue."
            )
    storage.write_atomic(path, json.dumps(record, indent=2, sort_keys=True) + "\n")
    return record


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
        """Opens ``folder/checkpoints`` and sets partial checkpoints aside.

        What is no checkpoint is left alone.
        """
        self._root = storage.absolute(folder) / "checkpoints"
        self._aside = self._root.parent / "damaged"
        self._root.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._root.iterdir()):
            if _PARTIAL.match(path.name):
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

        Raises:
          OSError: if this or the save before cannot be written.
        """
        if step in self._manager.all_steps():
            return
        if jax.default_backend() == "cpu":
            # Host copies of CPU arrays share memory that the next cycle overwrites.
            state = jax.tree.map(jnp.copy, state)
        meta = {**meta, "fingerprint": fingerprint(state), "leaves": _described(state)}
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave({"state": _packed(data)}),
                    meta=ocp.args.JsonSave(meta),
                ),
                metrics=None if metrics is None else dict(metrics),
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says what is safe when a save fails, in the background or at once."""
        try:
            yield
        except Exception as error:  # any failure to write, of Orbax or the disk
            reason = str(error).strip().split("\n")[0][:300]
            whole = [p.name for p in self._root.iterdir() if _is_step(p)]
            known = ", ".join(sorted(whole, key=int)) or "none"
            raise OSError(
                f"a checkpoint could not be saved in {str(self._root)!r} "
                f"({type(error).__name__}: {reason}). Earlier checkpoints are intact: "
                f"{known}. Make sure that the disk has free space and the folder can "
                "be written, then make the same call again: it continues from the "
                "newest of them"
            ) from error

    def restore(self, abstract: TrainState) -> Restored | None:
        """The newest whole checkpoint, None if there is none.

        Damaged ones that are newer are named in a warning and moved to ``damaged``.

        Args:
          abstract: shapes, dtypes and shardings of the state.

        Raises:
          ValueError: if a checkpoint is of another state or version, or none of those
            that are there can be read; all are left where they are.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                found = self._read(step, abstract)
            except _Mismatch as error:
                raise ValueError(str(error)) from None
            except (MemoryError, PermissionError):
                raise
            except Exception as error:  # any other failure to read means damage
                reason = str(error).strip().split("\n")[0][:200]
                damaged[step] = f"is damaged ({type(error).__name__}: {reason})"
                continue
            for newer, what in damaged.items():
                self._set_aside(self._root / str(newer), what)
            if damaged:
                self._manager.reload()
            return found
        if damaged:
            raise ValueError(
                f"no checkpoint in {str(self._root)!r} can be read, and all are left "
                "where they are: "
                + "; ".join(f"{step} {what}" for step, what in damaged.items())
                + ". Restore one from a copy; or, to begin again, choose another "
                "folder or move this one away"
            )
        return None

    def _read(self, step: int, abstract: TrainState) -> Restored:
        parts = self._manager.restore(
            step,
            args=ocp.args.Composite(
                data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore()
            ),
        )
        meta = parts["meta"]
        lacks = [name for name in ("leaves", "fingerprint") if name not in meta]
        if lacks:
            wrote = versions.another(meta) or "another library or version"
            raise _Mismatch(
                f"checkpoint {step} in {str(self._root)!r} was written by {wrote}: it "
                f"says nothing of its {' and '.join(lacks)}. It is left as it is; "
                "continue with what wrote it, move it away to use an older one, or "
                "choose another folder"
            )
        changed = differing(meta["leaves"], _described(abstract))
        if changed:
            raise _Mismatch(
                f"checkpoint {step} in {str(self._root)!r} holds another state (there "
                f"-> now): {'; '.join(changed)}. It is left as it is; choose another "
                "folder, the method and networks that it was saved with, or move it "
                "away to use an older one"
            )
        state = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
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

    def check(self) -> None:
        """Raises what a save in the background has met so far.

        Raises:
          OSError: if it failed.
        """
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the threads.

        Raises:
          OSError: if the last save failed.
        """
        try:
            self.wait()
        finally:
            self._manager.close()


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
