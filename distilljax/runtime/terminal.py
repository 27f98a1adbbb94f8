"""What the process writes to: terminals, pipes and files, or nothing at all."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from distilljax.runtime.extras import needed


def prepare() -> None:
    """Makes the standard streams take every text, at the front door of a command.

    A character that the encoding of a stream lacks (a path with an umlaut under
    ``LANG=C``) is written escaped. A stream that is closed, as those of daemons are,
    writes nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            # The lowest number that is free is that of the closed stream, so that no
            # file of a run gets it and what libraries print.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_terminal(stream: Any = None) -> bool:
    """Whether a stream, default stderr, is a terminal; one that is closed is none."""
    stream = sys.stderr if stream is None else stream
    if stream is None or getattr(stream, "closed", False):
        return False
    return bool(stream.isatty())


def bar(steps: Any = None, **options: Any) -> Any:
    """A bar of tqdm's that a jump of the wall clock does not touch.

    Args:
      steps: what to go through; None for a bar that is updated by hand.
      **options: those of `tqdm.tqdm`.
    """
    with needed("a bar of progress"):
        from tqdm import tqdm

    made = tqdm(steps, **options)
    made._time = time.monotonic
    made.start_t = made.last_print_t = made._time()
    return made


class Waiting:
    """Says now and then how long something has taken that cannot say so itself.

    Attributes:
      seconds: how long it took, after the block.
    """

    def __init__(self, show: Callable[[float], None], pause: float):
        """``show`` gets the seconds since the start every ``pause`` seconds."""
        self._show, self._pause, self.seconds = show, pause, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(self._pause):
            self._show(time.monotonic() - self._began)

    def __enter__(self) -> Waiting:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        # Nothing is shown after the block.
        self._thread.join()
        self.seconds = time.monotonic() - self._began
