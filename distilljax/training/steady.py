"""A clock for orbax that does not jump.

Orbax measures how long it waits for a save by the time of day: where that is set
forward meanwhile (by NTP, or as a machine wakes), a save that goes well counts as
timed out. Its modules of that kind see a clock that only goes on. A version of orbax
that has other modules keeps its own.
"""

from __future__ import annotations

import importlib
import time
import types
from typing import Any

_MODULES = (
    "futures.future",
    "futures.signaling_client",
    "checkpointers.async_checkpointer",
)


class _Steady(types.ModuleType):
    """The module `time`, whose `time` goes on from that of the first look."""

    def __init__(self):
        super().__init__("time")
        self._before = time.time() - time.monotonic()

    def time(self) -> float:
        return self._before + time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def keep_time() -> None:
    """Gives orbax's modules that clock; a second call changes nothing."""
    steady = _Steady()
    for name in _MODULES:
        try:
            module = importlib.import_module(f"orbax.checkpoint._src.{name}")
        except ImportError:
            continue
        if getattr(module, "time", None) is time:
            vars(module)["time"] = steady
