"""Checkpoints of a run: everything that it needs to continue bit for bit.

A step holds three items: ``state`` (roles, optimizers, followers, EMAs, memory, key),
``data`` (state of the data iterator) and ``meta`` (config, method, versions, a
fingerprint of the state and a checksum of the rest, by which a damaged checkpoint is
known). One that cannot be read now is no damaged one.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import itertools
import json
import math
import os
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distilljax.runtime import storage
from distilljax.runtime.extras import needed
from distilljax.training import distributed, versions
from distilljax.training.claim import differing, is_step
from distilljax.training.config import CheckpointConfig
from distilljax.training.digests import fingerprint, not_finite
from distilljax.training.state import TrainState, leaves
from distilljax.training.steady import keep_time

# What a run needs to know of its checkpoint.
_META = ("checksum", "fingerprint", "frozen", "leaves", "seconds")
# Names of checkpoints that are being saved: a step and Orbax's suffix.
_PARTIAL = re.compile(r"\d+\.orbax-checkpoint-tmp")
# Seconds before reading again where a file could not be read.
_AGAIN = (0.2, 1.0)
# Errors and words that speak of the reader or the disk, and not of the content.
_UNREADABLE = (
    *("EACCES", "EPERM", "EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "ETIMEDOUT"),
    *("EAGAIN", "EBUSY", "ECONNRESET", "EHOSTDOWN", "ENETUNREACH", "ENOLCK", "EINTR"),
)
_CODES = {getattr(errno, name) for name in _UNREADABLE if hasattr(errno, name)}
_SIGNS = (
    *("PERMISSION_DENIED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"),
    *map(os.strerror, sorted(_CODES)),
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


class _Mismatch(Exception):
    """A whole checkpoint of another state."""


class _Unreadable(OSError):
    """A checkpoint that cannot be read now."""


def _is_unreadable(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, speaks of reading and not of content."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _CODES:
            return True
        if any(sign in str(error) for sign in _SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_locked(folder: epath.Path) -> bool:
    """Whether this process may not read a part of a local folder."""
    if not storage.is_local(folder):
        return False
    refused: list[OSError] = []
    for where, _, names in os.walk(folder, onerror=refused.append):
        if not all(os.access(os.path.join(where, n), os.R_OK) for n in names):
            return True
    return any(isinstance(error, PermissionError) for error in refused)


def _checksum(meta: Mapping[str, Any], data: Any) -> str:
    """Of everything in a checkpoint but the arrays, which have their fingerprint."""
    rest = {k: v for k, v in meta.items() if k != "checksum"}
    text = json.dumps([rest, data], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
        ocp = _orbax()
        keep_time()
        self._root = storage.absolute(folder) / "checkpoints"
        self._aside = self._root.parent / "damaged"
        self._copy: Callable[[TrainState], TrainState] | None = None
        with distributed.together("open the checkpoints"):
            if distributed.is_first():
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

    @classmethod
    def to_read(cls, folder: epath.Path) -> Checkpoints:
        """Those of a folder for `saved` and `newest` alone: nothing is made or moved.

        A run may be going on in the folder.
        """
        found = cls.__new__(cls)
        found._root = storage.absolute(folder) / "checkpoints"
        return found

    @property
    def saved(self) -> list[int]:
        """Steps that are on disk, oldest first."""
        if not self._root.is_dir():
            return []
        return sorted(int(path.name) for path in self._root.iterdir() if is_step(path))

    def newest(self, abstract: TrainState) -> Restored:
        """The newest whole checkpoint; damaged ones are named and left where they are.

        Args:
          abstract: see `restore`.

        Raises:
          ValueError: if none of those that are there can be read, or the newest is of
            another state.
          OSError: see `restore`.
        """
        damaged: dict[int, str] = {}
        while steps := [step for step in self.saved if step not in damaged]:
            found = self._whole(steps[-1], abstract)
            if isinstance(found, str):
                # One that is gone meanwhile made room for a newer one.
                if steps[-1] in self.saved:
                    damaged[steps[-1]] = found
                continue
            for step, reason in damaged.items():
                warnings.warn(
                    f"checkpoint {step} in {str(self._root)!r} is damaged ({reason}); "
                    f"that of cycle {found.step} is used",
                    stacklevel=3,
                )
            return found
        raise ValueError(
            f"no checkpoint in {str(self._root)!r} can be read: "
            + "; ".join(f"{step} ({reason})" for step, reason in damaged.items())
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
          meta: JSON values; ``frozen`` and ``seconds`` among them.
          metrics: metrics of the evaluation hook, for the policy ``best``.

        Raises:
          OSError: if this or the save before cannot be written.
        """
        if step in self._manager.all_steps():
            return
        if jax.default_backend() == "cpu":
            # Host copies of CPU arrays share memory that the next cycle overwrites.
            state = self._copied(state)
        meta = {**meta, "fingerprint": fingerprint(state), "leaves": _described(state)}
        packed = {"state": _packed(data)}
        meta["checksum"] = _checksum(meta, packed)
        ocp = _orbax()
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(packed),
                    meta=ocp.args.JsonSave(meta),
                ),
                metrics=None if metrics is None else dict(metrics),
            )

    def _copied(self, state: TrainState) -> TrainState:
        """Copies of all arrays where they are, in one program."""
        if self._copy is None:
            self._copy = jax.jit(
                lambda tree: jax.tree.map(jnp.copy, tree),
                out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
            )
        return self._copy(state)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says what is safe when a save fails, in the background or at once."""
        try:
            yield
        except Exception as error:  # any failure to write, of Orbax or the disk
            reason = str(error).strip().split("\n")[0][:300]
            _forget(error)
            known = ", ".join(map(str, self.saved)) or "none"
            raise OSError(
                f"a checkpoint could not be saved in {str(self._root)!r} "
                f"({type(error).__name__}: {reason}). Earlier checkpoints are intact: "
                f"{known}. Make sure that the disk has free space and the folder can "
                "be written, then make the same call again: it continues from the "
                "newest of them"
            ) from error

    def restore(self, abstract: TrainState) -> Restored | None:
        """The newest whole checkpoint, None if there is none.

        Damaged ones that are newer are named in a warning and moved to ``damaged``. One
        that a single process cannot read is damaged for all.

        Args:
          abstract: shapes, dtypes and shardings of the state.

        Raises:
          ValueError: if a checkpoint is of another state or version, or none of those
            that are there can be read; all are left where they are.
          OSError: if the newest cannot be read now (permissions, disk, network), which
            says nothing of its content; all are left where they are.
        """
        damaged: dict[int, str] = {}
        for step in reversed(distributed.of_first(self.steps)):
            found = self._whole(step, abstract)
            if isinstance(found, str):
                damaged[step] = f"is damaged ({found})"
                continue
            if damaged:
                with distributed.together("set damaged checkpoints aside"):
                    if distributed.is_first():
                        for newer, what in damaged.items():
                            self._set_aside(self._root / str(newer), what)
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

    def _whole(self, step: int, abstract: TrainState) -> Restored | str:
        """A checkpoint, or how it is damaged.

        Raises:
          ValueError, OSError: see `restore`.
        """
        try:
            return self._read_again(step, abstract)
        except _Mismatch as error:
            raise ValueError(str(error)) from None
        except (MemoryError, _Unreadable):
            raise
        except Exception as error:  # any other failure to read means damage
            reason = str(error).strip().split("\n")[0][:200]
            return f"{type(error).__name__}: {reason}"

    def _read_again(self, step: int, abstract: TrainState) -> Restored:
        """`_read`, more than once where the disk or the network may recover."""
        for seconds in (*_AGAIN, None):
            try:
                return self._read(step, abstract)
            except Exception as error:
                # Orbax tells a folder that it may not open from one that is not there
                # in no way.
                if not (_is_unreadable(error) or _is_locked(self._root / str(step))):
                    raise
                if seconds is None:
                    reason = str(error).strip().split("\n")[0][:300]
                    raise _Unreadable(
                        f"checkpoint {step} in {str(self._root)!r} cannot be read now "
                        f"({type(error).__name__}: {reason}). That says nothing of its "
                        "content, and all are left where they are: look at the "
                        "permissions, the disk and the network, then make the same "
                        "call again"
                    ) from error
                time.sleep(seconds)
        raise AssertionError("unreachable")

    def _read(self, step: int, abstract: TrainState) -> Restored:
        path, args = self._root / str(step), _orbax().args
        with distributed.together(f"read checkpoint {step}"), _reader() as reader:
            parts = reader.restore(
                path, args.Composite(data=args.JsonRestore(), meta=args.JsonRestore())
            )
            meta = parts["meta"]
            if meta.get("checksum") not in (None, _checksum(meta, parts["data"])):
                raise ValueError("its data and meta do not match their checksum")
            self._suits(step, meta, abstract)
            state = reader.restore(
                path, args.Composite(state=args.StandardRestore(abstract))
            )["state"]
        if fingerprint(state) != meta["fingerprint"]:
            raise ValueError("its content does not match its fingerprint")
        # Updates that are known to be finite start from numbers that are.
        broken = not_finite({"params": state.params, "opt": state.opt})
        if broken:
            raise ValueError(f"{', '.join(broken[:3])} are not finite")
        return Restored(step, state, _unpacked(parts["data"]["state"]), meta)

    def _suits(self, step: int, meta: Mapping[str, Any], abstract: TrainState) -> None:
        """Refuses a whole checkpoint of another program or another state."""
        where = f"checkpoint {step} in {str(self._root)!r}"
        lacks = [name for name in _META if name not in meta]
        if lacks:
            wrote = versions.another(meta)
            if not wrote and len(lacks) < len(_META):
                raise ValueError(f"it says nothing of its {' and '.join(lacks)}")
            wrote = wrote or "another library or version"
            raise _Mismatch(
                f"{where} was written by {wrote}: it says nothing of its "
                f"{' and '.join(lacks)}. It is left as it is; continue with what wrote "
                "it, move it away to use an older one, or choose another folder"
            )
        changed = differing(meta["leaves"], _described(abstract))
        if changed:
            raise _Mismatch(
                f"{where} holds another state (there -> now): {'; '.join(changed)}. It "
                "is left as it is; choose another folder, the method and networks that "
                "it was saved with, or move it away to use an older one"
            )

    def _set_aside(self, path: epath.Path, what: str) -> None:
        self._aside.mkdir(exist_ok=True)
        taken = {p.name.split("-")[0] for p in self._aside.iterdir()}
        count = next(n for n in itertools.count() if f"{n:03d}" not in taken)
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


def _forget(error: BaseException | None) -> None:
    """Drops what failed writes hold, which Python would list after the message."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def _orbax() -> Any:
    """Orbax, which runs without a folder do without."""
    with needed("a run folder"):
        import orbax.checkpoint as ocp
    return ocp


def _reader() -> Any:
    """Reads without the other processes: one that fails keeps none of them waiting."""
    ocp = _orbax()
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
    policy = _orbax().checkpoint_managers
    keep: list[Any] = [policy.LatestN(config.keep)]
    if config.best is not None:
        name = config.best
        worst = math.inf if config.best_mode == "min" else -math.inf
        keep = [
            policy.LatestN(1),
            policy.BestN(
                get_metric_fn=lambda metrics: _or_worst(metrics[name], worst),
                reverse=config.best_mode == "min",
                n=config.keep,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    if config.keep_period is not None:
        keep.append(policy.EveryNSteps(config.keep_period))
    return policy.AnyPreservationPolicy(keep)


def _or_worst(value: float, worst: float) -> float:
    """A metric as it is compared: one that is no number is never the best."""
    return worst if math.isnan(value) else value


def _packed(data: Any) -> Any:
    if isinstance(data, bytes):
        return {"bytes": data.decode("latin1")}
    return {"json": json.loads(json.dumps(data, default=_plain))}


def _unpacked(data: Any) -> Any:
    return data["bytes"].encode("latin1") if "bytes" in data else data["json"]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)
