"""Records of a run: JSON lines and a table on disk, progress for people.

A writer takes records ``(step, name -> number)`` in the order of the steps. One that is
opened for a run that continues after some cycle drops its records of later cycles.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from distilljax.runtime.storage import Appender
from distilljax.runtime.terminal import Waiting, bar, is_terminal
from distilljax.training import loggers


class Writer(Protocol):
    """Where the records of a run go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a record of cycle ``step``."""
        ...

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds images ``[height, width, channels]``, uint8, where it can hold them."""
        ...

    def close(self) -> None:
        """Writes what is left and closes."""
        ...


class Writers:
    """Several writers as one."""

    def __init__(self, parts: Sequence[Writer]):
        self._parts = tuple(parts)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a record to each."""
        for part in self._parts:
            part.write(step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds images to each."""
        for part in self._parts:
            part.images(step, images)

    def close(self) -> None:
        """Closes each.

        Raises:
          Exception: the first of those that closing raised.
        """
        for error in close_all(self._parts):
            raise error


def close_all(parts: Iterable[Any]) -> list[Exception]:
    """Closes every part, whatever the others raise; returns that."""
    failed = []
    for part in parts:
        try:
            part.close()
        except Exception as error:  # the caller raises or reports it
            failed.append(error)
    return failed


def open_writers(
    folder: epath.Path, step: int, names: Sequence[str], record: Mapping[str, Any]
) -> Writers:
    """The writers of a run; none in processes other than the first.

    Args:
      folder: run folder; ``metrics.jsonl`` and ``metrics.csv`` are always in it.
      step: cycles done; later records are dropped.
      names: further loggers, see `loggers.OPENERS`.
      record: config of the run, JSON values.

    Raises:
      ModuleNotFoundError: if a logger's package is missing; names the extra.
    """
    if jax.process_index() != 0:
        return Writers(())
    further = [loggers.OPENERS[name](folder, step, record) for name in names]
    return Writers(
        (
            JsonLines(folder / "metrics.jsonl", step),
            Csv(folder / "metrics.csv", step),
            *further,
        )
    )


class JsonLines:
    """``metrics.jsonl``: one record a line, ``{"step": 50, "student/loss": ...}``.

    A resumed run drops the records after the restored step, and a line that a killed
    run left half written.
    """

    def __init__(self, path: epath.Path, step: int = 0):
        """Opens the file for a run that continues after cycle ``step``."""
        kept = [line for line in _lines(path) if _step(line) <= step]
        if step and not kept:
            # The first cycle of a run is recorded whatever log_every is.
            warnings.warn(
                f"{str(path)!r} holds no record of the cycles 1 to {step}, after which "
                "this run continues: it was emptied or removed",
                stacklevel=2,
            )
        self._file = Appender(path, "".join(kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a record; numbers that JSON lacks become null."""
        record = {"step": step} | {k: _number(v) for k, v in values.items()}
        self._file.write(json.dumps(record) + "\n")

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Holds none."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Csv:
    """``metrics.csv``: a row a record, ``step`` first, a column a name.

    A name that appears later gets a column of its own: the table is written anew with
    it. Cells of names that a record lacks are empty.
    """

    def __init__(self, path: epath.Path, step: int = 0):
        """Opens the file for a run that continues after cycle ``step``."""
        self._path = path
        self._columns, rows = _table(path)
        self._rewrite([row for row in rows if float(row["step"]) <= step])

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        lines = map(self._line, [_header(self._columns), *rows])
        self._file = Appender(self._path, "".join(lines))

    def _line(self, row: Mapping[str, Any]) -> str:
        out = io.StringIO()
        cells = [row.get(name, "") for name in self._columns]
        csv.writer(out, lineterminator="\n").writerow(cells)
        return out.getvalue()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a row; numbers are written as Python reads them, ``nan`` too."""
        row = {"step": step} | {k: _cell(v) for k, v in values.items()}
        new = [name for name in row if name not in self._columns]
        if new:
            self._file.close()
            rows = _table(self._path)[1]
            self._columns = [*self._columns, *new]
            self._rewrite(rows)
        self._file.write(self._line(row))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Holds none."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _header(columns: Sequence[str]) -> dict[str, str]:
    return {name: name for name in columns}


def _table(path: epath.Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and whole rows of a table; a row torn by a kill is left out.

    So is a damaged one, with a warning; a table without its header is begun again.
    """
    text = _text(path)
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not lines:
        return ["step"], []
    columns, *rows = lines
    if columns[:1] != ["step"]:
        _damaged(path, len(lines))
        return ["step"], []
    whole = [row for row in rows if len(row) <= len(columns) and _numeric(row)]
    if len(whole) < len(rows):
        _damaged(path, len(rows) - len(whole))
    return columns, [dict(zip(columns, row)) for row in whole]


def _text(path: epath.Path) -> str:
    """Content of a file; bytes that are no text stand for damage."""
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def _numeric(row: Sequence[str]) -> bool:
    """Whether the cells of a row are numbers, and the first a step."""
    try:
        return [float(cell) for cell in row if cell] != [] and row[0].isdigit()
    except ValueError:
        return False


def _damaged(path: epath.Path, count: int) -> None:
    warnings.warn(
        f"{str(path)!r} is damaged: {count} records in it are no records and were "
        "left out; checkpoints and the other records are as they were",
        stacklevel=3,
    )


def _cell(value: float) -> str:
    return repr(int(value) if isinstance(value, (bool, int)) else float(value))


def _number(value: float) -> float | int | None:
    if isinstance(value, (bool, int)):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def _lines(path: epath.Path) -> list[str]:
    """Whole records; a torn last one is left out, and damaged ones with a warning."""
    lines = [line for line in _text(path).splitlines(keepends=True) if line.strip()]
    lines = lines[:-1] if lines and not lines[-1].endswith("\n") else lines
    whole = [line for line in lines if _step(line) >= 0]
    if len(whole) < len(lines):
        _damaged(path, len(lines) - len(whole))
    return whole


def _step(line: str) -> int:
    """The step of a record, -1 for what is none."""
    if "\N{REPLACEMENT CHARACTER}" in line:
        return -1
    try:
        step = json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return -1
    return step if isinstance(step, int) and not isinstance(step, bool) else -1


def last_step(folder: epath.Path) -> int:
    """Cycle of the last whole record in ``metrics.jsonl``, 0 without one."""
    steps = (_step(line) for line in _text(folder / "metrics.jsonl").splitlines())
    return max(steps, default=0)


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
    """A bar on a terminal, a line now and then elsewhere; rate and remaining time.

    Rates are of cycles that are finished after the last compilation, by a clock that
    does not jump.
    """

    def __init__(
        self, name: str, total: int, start: int, show: bool = True, pause: float = 15.0
    ):
        """Starts at cycle ``start`` of ``total``; ``pause`` seconds between lines."""
        self._name, self._total, self._start, self._pause = name, total, start, pause
        self._bar, self._compiled = None, False
        terminal = is_terminal()
        self._lines = show and not terminal and sys.stderr is not None
        if show and terminal:
            options = {"desc": name, "unit": "cycle", "dynamic_ncols": True}
            self._bar = bar(total=total, initial=start, **options)
        self._began = self._last = time.monotonic()

    @contextlib.contextmanager
    def compiling(self, cycle: int) -> Iterator[None]:
        """Says that the program of a cycle is being compiled, and for how long."""
        self.say(f"{self._name}: compiling cycle {cycle} ...")
        pause = self._pause if self._bar is None else 1.0
        with Waiting(self._still, max(pause, 0.1)) as waiting:
            yield
        if self._bar is not None:
            self._bar.set_postfix_str("", refresh=False)
        self.say(f"{self._name}: compiled in {waiting.seconds:.1f} s")
        self.skip(waiting.seconds)
        self._compiled = True

    def _still(self, seconds: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"compiling {seconds:.0f} s")
        else:
            self.say(f"{self._name}: compiling ... {seconds:.0f} s")

    def skip(self, seconds: float) -> None:
        """Takes the last seconds out of the rate."""
        self._began += seconds
        if self._bar is not None:
            self._bar.unpause()

    def update(self, step: int) -> None:
        """Says that ``step`` cycles are done."""
        if self._compiled:
            # The first cycles ended while nothing was counted.
            self._compiled = False
            self._start, self._began = step, time.monotonic()
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
            self.say(
                f"{self._name}: cycle {step}/{self._total}, {text}{self._pace(step)}"
            )

    def _pace(self, step: int) -> str:
        """Rate and remaining time in words, "" before they are known."""
        done = 0 if self._compiled else step - self._start
        seconds = time.monotonic() - self._began
        if done < 1 or seconds <= 0.0:
            return ""
        left = (self._total - step) * seconds / done
        return f", {done / seconds:.3g} cycles/s, {left:.0f} s left"

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
