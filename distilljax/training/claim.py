"""Whose a run folder is: the record in ``config.json``, and what may change in it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from etils import epath

from distilljax.__about__ import __version__
from distilljax.runtime import storage
from distilljax.training import distributed, versions
from distilljax.training.config import TrainConfig
from distilljax.training.writers import last_step

_HARMLESS = (
    "mesh",
    "log_every",
    "logging",
    "sample_every",
    "evaluate_every",
    "diagnose_every",
    "checkpoint",
    "max_skipped",
    "data_timeout",
    "ignore_cond",
)


# What a run writes into its folder, and what is made of it there.
_OF_A_RUN = (
    "checkpoints",
    "config.json",
    "damaged",
    "edits",
    "metrics.csv",
    "metrics.jsonl",
    "params",
    "profile",
    "samples",
    "tensorboard",
    "wandb_id",
)


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
    steps = {int(p.parent.parent.name): p for p in found if is_step(p.parent.parent)}
    for step in sorted(steps, reverse=True):
        try:
            return json.loads(steps[step].read_text())["run"]
        except (ValueError, KeyError, TypeError):
            continue
    return None


def is_step(path: epath.Path) -> bool:
    """Whether a path is the folder of a checkpoint."""
    return path.name.isdigit() and path.is_dir()


def _unlocated(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without where things lie, which is no part of what they are.

    The parameters of a teacher and the contents of a source have fingerprints, which
    are compared: a folder may be spelled otherwise, or have moved.
    """
    card = record.get("card")
    if not isinstance(card, Mapping):
        return dict(record)
    card = {key: value for key, value in card.items() if key != "teacher"}
    source = card.get("source")
    if record.get("data") and isinstance(source, Mapping):
        card["source"] = {k: v for k, v in source.items() if k != "path"}
    return {**record, "card": card}


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], config: TrainConfig
) -> list[str]:
    """What makes the records of two runs those of different ones.

    Where a teacher and the data lie is none of it; see `checks.check_frozen`.

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
    old, new = _unlocated(old), _unlocated(new)
    wrote = versions.another(old)
    for record in (old, new):
        record.pop("version", None)
        # How classes are called; which samples are in them, the fingerprint says.
        record.pop("class_names", None)
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
        card, like = old.get("card"), new.get("card")
        if isinstance(card, Mapping) and isinstance(like, Mapping):
            old["card"] = versions.filled_card(card, like, old["train"]["roles"])
    changed = differing(_without(old, ignored), _without(new, ignored))
    if changed and wrote:
        changed[-1] += (
            f" (there {wrote} ran, here {__version__}: a setting that the older one "
            "lacked stands with its default, '(none)' is a key that one of them lacks)"
        )
    return changed


def claim_results(
    path: epath.Path, record: Mapping[str, Any], what: str, *, fresh: bool = False
) -> dict[str, Any]:
    """Makes a folder of results this record's, or refuses.

    Args:
      path: file that says whose the folder is.
      record: what determines the results.
      what: the results in words, such as "quick start".
      fresh: removes what an earlier call left.

    Returns:
      The record, JSON values, as the file holds it.

    Raises:
      ValueError: if the folder holds something else, or results of another record.
    """
    folder = path.parent
    mine = json.loads(json.dumps(record))
    if fresh and folder.exists():
        if any(folder.iterdir()) and not path.is_file():
            raise ValueError(
                f"{folder} holds no {what}, so --fresh leaves it alone; choose another "
                "folder with --out or remove it yourself"
            )
        folder.rmtree()
    if path.is_file():
        there = json.loads(path.read_text())
        if there != mine:
            raise ValueError(
                f"{folder} holds a {what} of other settings (there -> now): "
                f"{'; '.join(differing(there, mine))}. Pass --fresh to start again, or "
                "--out for another folder."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and holds no {what}; choose another folder with "
            "--out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(path, json.dumps(mine, indent=1).encode())
    return mine


def check_fresh(folder: epath.Path) -> None:
    """Checks that a folder is a run's or empty before a run in it is removed.

    Raises:
      ValueError: if the folder holds something else.
    """
    if not folder.exists() or _started(folder) or (folder / "config.json").is_file():
        return
    if any(path.name != ".lock" for path in folder.iterdir()):
        raise ValueError(
            f"{folder} holds no run, so --fresh leaves it alone (fresh=True); choose "
            "another folder"
        )


def _begin_again(folder: epath.Path) -> None:
    """Removes what a run left in its folder, and nothing else."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.name in _OF_A_RUN:
            path.rmtree() if path.is_dir() else path.unlink()


def _refuse_lost(folder: epath.Path, old: Mapping[str, Any]) -> None:
    """Refuses a run whose checkpoints were removed: it would begin again in silence.

    A run that was killed before its first checkpoint was whole has lost nothing.
    """
    saves = folder / "checkpoints"
    if saves.is_dir() and any(saves.iterdir()):
        return
    train = old.get("train", {})
    cycles = train.get("cycles", 1)
    first = min(train.get("checkpoint", {}).get("every") or cycles, cycles)
    last = last_step(folder)
    # The first save may be under way while cycles go on, until the second is due; the
    # folder of the checkpoints is there from the start.
    gone = storage.is_local(folder) and not saves.is_dir()
    ended = (folder / "params").is_dir()
    if ended or last > 2 * first or (gone and last >= first):
        raise ValueError(
            f"run folder {str(folder)!r} holds records up to cycle {last} and no "
            "checkpoint to continue from: was checkpoints/ removed? Put it back, "
            "choose another folder, or begin again with fresh=True (--fresh), which "
            "removes what is left of the run"
        )


def claim(
    folder: epath.Path,
    config: TrainConfig,
    card: Mapping[str, Any],
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """Makes a run folder this config's, or refuses.

    Of several processes the first one writes, and all refuse if one does.

    Args:
      folder: run folder; ``config.json`` in it says whose it is.
      config: the training config.
      card: what else determines the run (method, options, source, networks).
      fresh: removes an earlier run in the folder first.

    Returns:
      The record of the run, JSON values, as `versions.read_record` reads it.

    Raises:
      ValueError: if the folder holds a run of another config, listing what differs, or
        of a newer version; if its ``config.json`` is damaged; if its checkpoints are
        gone; if processes have
        different configs, or one does not see the folder.
    """
    folder = epath.Path(folder)
    # A round trip, so that what was read and what is new compare equal.
    record = {"version": __version__, "train": config.to_dict(), **card}
    record = json.loads(json.dumps(record, default=str))
    first, *others = distributed.of_all(record)
    for process, other in enumerate(others, 1):
        if changed := differing(first, other):
            raise ValueError(
                f"process {process} was started with another config than process 0 "
                f"(0 -> {process}): {'; '.join(changed)}"
            )
    path = folder / "config.json"
    text = versions.sealed(record)
    with distributed.together("take the run folder"):
        if distributed.is_first():
            if fresh:
                _begin_again(folder)
            _refuse_another(folder, config, record)
            storage.write_atomic(path, text)
    seen = distributed.of_all(path.is_file() and path.read_text() == text)
    blind = [process for process, sees in enumerate(seen) if not sees]
    if blind:
        raise ValueError(
            f"processes {blind} do not see the run folder {str(folder)!r} that process "
            "0 made; it must lie on storage that all of them share"
        )
    return record


def _refuse_another(
    folder: epath.Path, config: TrainConfig, record: Mapping[str, Any]
) -> None:
    if not _started(folder):
        return
    old = _record(folder)
    if old is None:
        _refuse_lost(folder, record)
        return
    try:
        changed = changes(old, record, config)
    except ValueError as error:
        raise ValueError(f"run folder {str(folder)!r}: {error}") from None
    if changed:
        raise ValueError(
            f"run folder {str(folder)!r} holds a run of another config, which is "
            "left as it is. Different (there -> now): "
            + "; ".join(changed)
            + ". Choose another folder, the old config to continue, or fresh=True "
            "(--fresh) to remove that run and begin again."
        )
    _refuse_lost(folder, old)
