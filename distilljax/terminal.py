"""What the process writes to: terminals, pipes and files, or nothing at all."""

from __future__ import annotations

import os
import sys
from typing import Any


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
