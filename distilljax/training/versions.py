"""What another version of the library wrote: records of runs, read with care.

A key that an older version lacked takes its default, which is what that version did. A
key that this version lacks is one of a newer version, and no setting that changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from distilljax.__about__ import __version__
from distilljax.training.config import TrainConfig

_DEFAULTS = TrainConfig().to_dict()
_ROLE = _DEFAULTS["default"]
_SEAL = "checksum"


def sealed(record: Mapping[str, Any]) -> str:
    """The text of ``config.json``: a record with its checksum."""
    known = {**record, _SEAL: _checksum(record)}
    return json.dumps(known, indent=2, sort_keys=True) + "\n"


def _checksum(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_record(path: epath.Path) -> dict[str, Any]:
    """The record in ``config.json``, checked against its checksum.

    A version before checksums wrote none, and then nothing is checked.

    Raises:
      ValueError: if the file is damaged.
    """
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError(f"it holds no mapping but {type(record).__name__}")
        if record.pop(_SEAL, None) not in (None, _checksum(record)):
            raise ValueError(
                "it does not match its checksum; if it was edited on purpose, remove "
                f"its key {_SEAL!r}"
            )
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({error}); the checkpoints beside it are as "
            "they were. Restore the file from a copy. Without one: if you are sure of "
            "the config, remove the file, and the same call writes it again and "
            "continues"
        ) from error
    return record


def filled(train: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an older version with the defaults of the keys that it lacked."""
    out = _over(_DEFAULTS, train)
    roles = train.get("roles", {})
    out["roles"] = {name: _over(_ROLE, section) for name, section in roles.items()}
    return out


def filled_card(
    card: Mapping[str, Any], like: Mapping[str, Any], roles: Mapping[str, Any]
) -> dict[str, Any]:
    """A card of an older version with the defaults of settings that a newer one has.

    Args:
      card: settings beside a method, networks and a source; sections of roles.
      like: the newer card, whose keys are filled in.
      roles: names of the roles with sections.
    """

    def known(base: Mapping[str, Any], names: Any) -> dict[str, Any]:
        return {name: base[name] for name in names if name in base}

    out = _over(known(_DEFAULTS, like), card)
    for name in {*roles, "default"} & {*card} & {*like}:
        out[name] = _over(known(_ROLE, like[name]), card[name])
    return out


def _over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A section over its defaults; a mesh or a list is one value."""
    out = dict(base) | dict(values)
    for name, inner in base.items():
        nested = isinstance(inner, Mapping) and name not in ("mesh", "roles")
        if nested and isinstance(values.get(name), Mapping):
            out[name] = _over(inner, values[name])
    return out


def unknown_keys(train: Mapping[str, Any]) -> list[str]:
    """Settings that this version does not have, as ``default.name``."""
    found = _beyond(_DEFAULTS, train, "")
    for name, section in train.get("roles", {}).items():
        found += _beyond(_ROLE, section, f"roles.{name}.")
    return found


def _beyond(
    base: Mapping[str, Any], values: Mapping[str, Any], where: str
) -> list[str]:
    out = []
    for name, value in values.items():
        inner = base.get(name)
        if name not in base:
            out.append(f"{where}{name}")
        elif name in ("mesh", "roles"):
            continue
        elif isinstance(inner, Mapping) and isinstance(value, Mapping):
            out += _beyond(inner, value, f"{where}{name}.")
    return out


def another(record: Mapping[str, Any]) -> str:
    """Words for the version that wrote a record, if it is not this one."""
    version = record.get("version")
    if version == __version__:
        return ""
    return f"distilljax {version or 'of an earlier version'}"
