"""What hooks see of a run and what it returns."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from distilljax.training.roles import Setup
from distilljax.training.state import Params, TrainState
from distilljax.training.update import all_params


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """The parameters after some cycle.

    Arrays that a hook sees are overwritten by the next cycle: copy what is to be kept.

    Attributes:
      step: cycles done.
      state: the state.
      frozen: parameters of the frozen roles.
      setup: roles with networks and config.
    """

    step: int
    state: TrainState
    frozen: Mapping[str, Params]
    setup: Setup = dataclasses.field(repr=False)

    def params(self, role: str = "student", *, ema: bool = True) -> Params:
        """Parameters of a role, derived ones included.

        Args:
          role: name of the role.
          ema: take evaluation EMAs where the config keeps them.
        """
        params = {**self.state.params, **(self.state.ema if ema else {})}
        if self.setup.method.roles[role].derive is None:
            return {**self.frozen, **params}[role]
        return _deriving(self.setup, role)(params, dict(self.frozen), self.state.step)


@functools.lru_cache(maxsize=8)
def _deriving(setup: Setup, role: str) -> Callable[..., Params]:
    """One program for the parameters of a derived role."""
    return jax.jit(
        lambda params, frozen, step: all_params(setup, params, frozen, step)[role]
    )


@dataclasses.dataclass(frozen=True, eq=False)
class TrainResult(View):
    """The end of a run.

    Attributes:
      seconds: spent in training, over all continued parts.
      metrics: the last record.
      folder: run folder, or None.
    """

    seconds: float = 0.0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    folder: epath.Path | None = None


class Interrupted(SystemExit):
    """Raised after a signal when everything is saved; ends the process if not caught.

    Attributes:
      result: the result so far.
    """

    def __init__(self, number: int, result: TrainResult):
        super().__init__(128 + number)
        self.result = result


class Hooks(NamedTuple):
    """What happens beside training.

    Attributes:
      sample: called with a `View` every ``sample_every`` cycles; a mapping of names to
        images ``[height, width, channels]``, uint8, goes to the loggers.
      evaluate: `View` -> metrics, every ``evaluate_every`` cycles and at the end;
        logged as ``evaluate/name``.
      diagnose: `View` -> metrics, every ``diagnose_every`` cycles; logged as
        ``diagnose/name``.
    """

    sample: Callable[[View], Any] | None = None
    evaluate: Callable[[View], Mapping[str, float]] | None = None
    diagnose: Callable[[View], Mapping[str, float]] | None = None


_SAVING = "saving after this cycle, then ending; Ctrl-C (again) ends at once"


class Signals:
    """Notes SIGTERM and SIGINT while it is entered; a second SIGINT acts at once."""

    def __init__(self, active: bool):
        """Installs nothing unless ``active`` and in the main thread."""
        main = threading.current_thread() is threading.main_thread()
        self._numbers = (signal.SIGTERM, signal.SIGINT) if active and main else ()
        self._old: dict[int, Any] = {}
        self.came: int | None = None

    def __enter__(self) -> Signals:
        for number in self._numbers:
            self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.came is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.came = number
        # Print is not reentrant, and the terminal may be closed.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{signal.Signals(number).name}: {_SAVING}\n".encode())

    def __exit__(self, *_) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
