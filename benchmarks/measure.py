"""Interleaved pairs, their ratio with a confidence bound, and the record on disk.

A contender is a function that does a block of work and returns its seconds. Two of them
take turns, A B A B ..., so that what else the machine does meets both; the ratio of a
pair is compared inside the pair, and the result is the median over the pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from distilljax.evaluation.machine import hardware, versions

Block = Callable[[], float]
Result = dict[str, Any]
FOLDER = pathlib.Path("runs/benchmarks")
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
      pairs: interleaved pairs of every ratio.
      shorten: divisor of the length of a block.
      tiny: whether networks and batches are miniatures, for tests.
    """

    pairs: int = 24
    shorten: int = 1
    tiny: bool = False

    def steps(self, count: int) -> int:
        """Length of a block that has ``count`` steps in full."""
        return 2 if self.tiny else max(1, count // self.shorten)


FULL, QUICK, TINY = Scale(), Scale(6, 2), Scale(2, tiny=True)


def timed(step: Callable[[], Any], count: int) -> Block:
    """A block of ``count`` calls; the last result is waited for."""

    def block() -> float:
        out, began = None, time.perf_counter()
        for _ in range(count):
            out = step()
        jax.block_until_ready(out)
        return time.perf_counter() - began

    return block


def interleaved(a: Block, b: Block, pairs: int, warm: int = 2) -> list[list[float]]:
    """Seconds ``[a, b]`` of so many pairs, after some that compile and settle."""
    rows = [[a(), b()] for _ in range(warm + pairs)]
    return rows[warm:]


def bounds(values: Sequence[float], samples: int = 4000) -> tuple[float, float, float]:
    """Median with its 95 % bootstrap interval: ``(median, low, high)``."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(0)
    drawn = rng.choice(values, (samples, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def ratio(
    name: str,
    what: str,
    pairs: Sequence[Sequence[float]],
    *,
    limit: float,
    goal: float | None = None,
    steps: int = 1,
) -> Result:
    """The result of pairs ``[a, b]``: the median of ``a / b`` against a limit.

    Args:
      name: how the table calls it.
      what: what is divided by what.
      pairs: seconds of the blocks.
      limit: largest ratio that passes.
      goal: ratio that is aimed at.
      steps: steps of a block, for the seconds of one step.
    """
    table = np.asarray(pairs, np.float64)
    value, low, high = bounds(table[:, 0] / table[:, 1])
    return {
        "name": name,
        "what": what,
        "value": value,
        "low": low,
        "high": high,
        "limit": limit,
        "goal": limit if goal is None else goal,
        "passed": value <= limit,
        "milliseconds": (1e3 * np.median(table, axis=0) / steps).tolist(),
        "pairs": table.tolist(),
    }


def fact(name: str, what: str, value: float, expected: float, **more: Any) -> Result:
    """The result of a count that must be met exactly."""
    return {
        "name": name,
        "what": what,
        "value": value,
        "limit": expected,
        "goal": expected,
        "passed": value == expected,
        **more,
    }


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of the programs that are compiled inside the block."""
    names: list[str] = []

    def note(event: str, seconds: float, **labels: Any) -> None:
        if event == _COMPILED:
            names.append(str(labels.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def record(results: Sequence[Result], scale: Scale, seconds: float) -> dict[str, Any]:
    """What is written: results, and all that a reader needs to judge them."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([pathlib.Path(sys.executable).name, *sys.orig_argv[1:]]),
        "scale": scale._asdict(),
        "seconds": round(seconds, 1),
        "hardware": hardware(),
        "versions": versions(),
        "results": list(results),
    }


def table(results: Sequence[Result]) -> str:
    """Results for people."""
    line = "{:<34}{:>9}  {:<18}{:>7}{:>7}  {}"
    rows = [line.format("", "value", "95 % interval", "limit", "goal", "")]
    for r in results:
        span = f"{r['low']:.3f} .. {r['high']:.3f}" if "low" in r else "exact"
        value = f"{r['value']:.3f}" if "low" in r else f"{r['value']:g}"
        verdict = "missed"
        if r["passed"]:
            verdict = "goal" if r["value"] <= r["goal"] else "passed"
        limits = (f"{r[k]:g}" for k in ("limit", "goal"))
        rows.append(line.format(r["name"], value, span, *limits, verdict))
    return "\n".join(rows)


def main(
    run: Callable[[Scale], list[Result]],
    name: str,
    about: str | None,
    arguments: Sequence[str] | None = None,
) -> int:
    """The command line of a benchmark; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks{'' if name == 'all' else '.' + name}",
        description=(about or "").split("\n")[0],
    )
    parser.add_argument("--out", type=pathlib.Path, help="JSON file of the results")
    parser.add_argument("--pairs", type=int, help="interleaved pairs of every ratio")
    parser.add_argument("--quick", action="store_true", help="a rough look, few pairs")
    parser.add_argument("--tiny", action="store_true", help="only to see that it runs")
    given = parser.parse_args(arguments)
    scale = TINY if given.tiny else QUICK if given.quick else FULL
    scale = scale._replace(pairs=given.pairs or scale.pairs)
    began = time.perf_counter()
    results = run(scale)
    found = record(results, scale, time.perf_counter() - began)
    out = given.out or FOLDER / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(results))
    print(f"{found['seconds']:.0f} s, written to {out}")
    return 0 if all(r["passed"] for r in results) else 1
