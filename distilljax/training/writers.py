"""Records of a run: JSON lines on disk, progress for people."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping

import tqdm
from etils import epath

from distilljax.storage import Appender


class JsonLines:
    """``metrics.jsonl``: one record a line, ``{"step": 50, "student/loss": ...}``.

    A resumed run drops the records after the restored step, and a line that a killed
    run left half written.
    """

    def __init__(self, path: epath.Path, step: int = 0):
        """Opens the file for a run that continues after cycle ``step``."""
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        self._file = Appender(path, "".join(kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a record; numbers that JSON lacks become null."""
        record = {"step": step} | {k: _number(v) for k, v in values.items()}
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _number(value: float) -> float | int | None:
    if isinstance(value, (bool, int)):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def _lines(path: epath.Path) -> list[str]:
    if not path.exists():
        return []
    whole = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if line.endswith("\n"):
            whole.append(line)
    return whole


def read_metrics(path: str | os.PathLike) -> dict[str, tuple[list[int], list[float]]]:
    """Reads ``metrics.jsonl`` back: name -> steps and values; null becomes nan."""
    out: dict[str, tuple[list[int], list[float]]] = {}
    for line in _lines(epath.Path(path)):
        record = json.loads(line)
        for name, value in record.items():
            if name != "step":
                steps, values = out.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(math.nan if value is None else value)
    return out


class Progress:
    """A bar on a terminal, a line now and then elsewhere; rate and remaining time."""

    def __init__(
        self, name: str, total: int, start: int, show: bool = True, pause: float = 15.0
    ):
        """Starts at cycle ``start`` of ``total``; ``pause`` seconds between lines."""
        self._name, self._total, self._start, self._pause = name, total, start, pause
        self._bar = None
        self._lines = show and not sys.stderr.isatty()
        if show and not self._lines:
            self._bar = tqdm.tqdm(
                total=total, initial=start, desc=name, unit="cycle", dynamic_ncols=True
            )
        self._began = self._last = time.monotonic()

    def update(self, step: int) -> None:
        """Says that ``step`` cycles are done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the newest losses."""
        losses = {k: v for k, v in values.items() if k.endswith("/loss")}
        text = ", ".join(f"{k} {v:.4g}" for k, v in losses.items())
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        elif self._lines and (now - self._last > self._pause or step == self._total):
            self._last = now
            rate = (step - self._start) / max(now - self._began, 1e-9)
            left = (self._total - step) / max(rate, 1e-9)
            self.say(
                f"{self._name}: cycle {step}/{self._total}, {text}, "
                f"{rate:.3g} cycles/s, {left:.0f} s left"
            )

    def say(self, text: str) -> None:
        """Prints a line that does not tear the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._lines:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
