"""The training loop: one program a stage, no waiting for the device.

The loop dispatches cycles ahead of the device, by a fraction of a second, and reads the
metrics of finished ones together, so that logging never blocks and the host's share of
a short cycle stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from distilljax.__about__ import __version__
from distilljax.core.binding import Network
from distilljax.core.method import Method, check
from distilljax.runtime import promotion
from distilljax.training import checks, distributed
from distilljax.training.checkpoints import Checkpoints
from distilljax.training.claim import check_fresh, claim
from distilljax.training.config import TrainConfig
from distilljax.training.cycle import Cycle, build_cycle
from distilljax.training.digests import fingerprint
from distilljax.training.feed import Feed, place, stage_of
from distilljax.training.lock import Lock
from distilljax.training.network_checks import check_networks
from distilljax.training.profile import Profile
from distilljax.training.results import Hooks, Interrupted, Signals, TrainResult, View
from distilljax.training.roles import make_setup, run_mesh
from distilljax.training.state import Params, abstract, create_frozen, create_state
from distilljax.training.writers import Progress, Writers, close_all, open_writers

# Cycles dispatched before their metrics are read: so many, but not more than fit into
# so many seconds, since a signal or a broken update is noticed that much later.
AHEAD_CYCLES, AHEAD_SECONDS = 8, 0.2


@promotion.usual()
def train(
    method: Method,
    networks: Mapping[str, Network],
    params: Mapping[str, Params] | None,
    data: Any,
    config: TrainConfig | Mapping[str, Any],
    folder: str | os.PathLike | None = None,
    *,
    hooks: Hooks = Hooks(),
    sample_shape: tuple[int, ...] | None = None,
    card: Mapping[str, Any] | None = None,
    progress: bool = True,
    profile: tuple[int, int] | None = None,
    fresh: bool = False,
) -> TrainResult:
    """Trains a method, or continues a run where it stopped.

    Args:
      method: the method.
      networks: network by role or by the key that roles name.
      params: parameters given, by role (the teacher's); never changed or donated.
      data: a source (see `distilljax.data`), or an iterator over the batches of cycles
        ``[n, accumulate, B, ...]`` with ``get_state`` and ``set_state``.
      config: the training config, or a mapping for `TrainConfig.of`.
      folder: run folder for ``config.json``, ``metrics.jsonl``, ``metrics.csv`` and
        ``checkpoints``; a run of the same config found there is continued. None keeps
        nothing.
      hooks: see `Hooks`.
      sample_shape: shape of one sample; default the source's, or that of ``x0``.
      card: what else determines the run, JSON values; kept in ``config.json``.
      progress: whether to show a bar or lines on stderr.
      profile: first and last cycle, from 1, of a profiler trace in ``profile`` of the
        run folder; see `Profile`.
      fresh: removes the run that is in the folder and begins again.

    Returns:
      The result; with a folder, all of it is saved there.

    Raises:
      ValueError: at the start, on input that does not fit; see `checks`.
      FloatingPointError: after ``max_skipped`` non-finite updates in a row.
      TimeoutError: if the data hangs, see ``data_timeout``.
      OSError: if something cannot be saved; what was saved before is intact.
      Interrupted: after SIGTERM or SIGINT with a folder, when everything is saved.
    """
    method = check(method)
    config = TrainConfig.of(config, roles=method.roles)
    path = None if folder is None else epath.Path(folder)
    where = None if path is None else path / "profile"
    traced = Profile(profile, where, config.cycles)
    if fresh and path is not None:
        check_fresh(path)
    run = _Run(method, params, data, config)
    run.profile = traced
    try:
        run.prepare(method, networks, data, sample_shape)
        run.open(path, data, card, progress, fresh)
        with Signals(path is not None) as signals:
            run.loop(hooks, signals)
    except BaseException as error:
        for further in run.close():
            error.add_note(f"While ending: {further}")
        raise
    failed = run.close()
    if failed:
        raise failed[0]
    result = run.result(path)
    if run.meeting.signal is not None:
        raise Interrupted(run.meeting.signal, result)
    return result


class _Run:
    """One call of `train`."""

    lock: Lock | None = None
    saves: Checkpoints | None = None
    writers = Writers(())
    profile = Profile(None, None)
    bar: Progress | None = None

    def __init__(self, method, params, data, config):
        checks.check_source(method, data)
        self.config, self.given = config, params
        self.mesh = run_mesh(config)
        self.feed = Feed(method, data, config, self.mesh)

    def prepare(self, method, networks, data, sample_shape) -> None:
        """Reads the first batch and checks that all fits together."""
        config, mesh = self.config, self.mesh
        first = self.feed.next(0)
        shape = checks.sample_shape(first, sample_shape, data)
        self.setup = make_setup(
            method, networks, config, shape, mesh, checks.shapes(first, mesh)
        )
        checks.check_setup(self.setup)
        checks.check_classes(self.setup, data)
        checks.check_batch(self.setup, first)
        check_networks(self.setup, first)
        self.frozen = create_frozen(self.setup, self.given)
        checks.check_finite(self.frozen)
        self.batch = place(self.setup, first)
        self.programs: dict[int, Cycle] = {}
        self.pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self.ahead, self.looked = 1, time.monotonic()
        self.meeting = distributed.Meeting(0)
        self.record: dict[str, float] = {}
        self.meta: dict[str, Any] = {"version": __version__}
        self.step, self.before = 0, 0.0
        self.called: set[int] = set()
        self.skipped, self.owed = 0, False

    def open(self, folder, data, card, progress: bool, fresh: bool = False) -> None:
        """Restores the newest whole checkpoint, or creates the state."""
        method, config, restored = self.setup.method, self.config, None
        if folder is not None:
            with distributed.together("take the lock of the run folder"):
                if distributed.is_first():
                    self.lock = Lock(folder)
            run = {"method": method.name, "data": getattr(data, "fingerprint", None)}
            record = {**run, **(card or {})}
            self.meta["run"] = claim(folder, config, record, fresh=fresh)
            self.meta["frozen"] = fingerprint(self.frozen)
            if "teacher" in (self.given or {}) and "teacher" not in self.frozen:
                # A role starts from it, and nothing else reads it.
                self.meta["start"] = fingerprint(self.given["teacher"])
            checks.check_equal(self.meta["frozen"])
            self.saves = Checkpoints(folder, config.checkpoint)
            restored = self.saves.restore(abstract(self.setup, self.given))
        if restored is None:
            self.state = create_state(self.setup, self.given)
            checks.check_start(self.state)
        else:
            checks.check_frozen(self.meta, restored.meta)
            checks.check_run(restored.step, restored.meta, self.meta["run"], config)
            self.step, self.state = restored.step, restored.state
            self.before = restored.meta["seconds"]
            self.feed.restore(restored.data, self.step)
            if self.step < config.cycles:
                self.batch = place(self.setup, self.feed.next(self.step))
        if folder is not None:
            record = {"train": config.to_dict(), **record}
            with distributed.together("open the files of the run"):
                self.writers = open_writers(folder, self.step, config.loggers, record)
        shown = progress and distributed.is_first()
        self.meeting = distributed.Meeting(self.step)
        self.bar = Progress(method.name, config.cycles, self.step, shown)
        if self.lock is not None and self.lock.note:
            self.bar.say(f"{method.name}: {self.lock.note}")
        if restored is not None:
            past = ", past those to trace" if self.profile.missed(self.step) else ""
            self.bar.say(f"{method.name}: continues after cycle {self.step}{past}")
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def cycle(self) -> Mapping[str, jax.Array]:
        """Dispatches the next cycle; its first call of a stage compiles it."""
        assert self.bar is not None
        stage, new = stage_of(self.setup.method, self.step), contextlib.nullcontext()
        if stage not in self.programs:
            phases = self.setup.method.phases_at(self.step)
            self.programs[stage] = build_cycle(self.setup, phases)
            new = self.bar.compiling(self.step + 1)
        program = self.programs[stage]
        with new, self.profile.cycle(self.step + 1, self.state):
            self.state, metrics = program(self.state, self.frozen, self.batch)
        return metrics

    def loop(self, hooks: Hooks, signals: Signals) -> None:
        """Cycles until the end or a signal."""
        config = self.config
        while self.step < config.cycles:
            metrics = self.cycle()
            self.step += 1
            self.profile.after(self.step, self.state)
            if len(self.pending) >= self.meeting.ahead:
                self.look()
            self.pending.append((self.step, metrics))
            ended = self.step == config.cycles
            evaluated = self.call_hooks(hooks, ended)
            self.meeting.after(self.step, signals.came, self.ahead, ended)
            last = ended or self.meeting.signal is not None
            if self.saves and self.saving(last):
                with distributed.patience(f"save after cycle {self.step}"):
                    self.saves.save(
                        self.step,
                        self.state,
                        self.feed.state(),
                        {**self.meta, "seconds": self.seconds},
                        evaluated,
                    )
            if last:
                # A signal may have come while the end was saved.
                self.meeting.after(self.step, signals.came, self.ahead, True)
                self.farewell()
                break
            self.batch = place(self.setup, self.feed.next(self.step))
        self.look()

    def saving(self, last: bool) -> bool:
        """Whether to save now: never between skipped updates, but soon after them.

        Checkpoints of a run that no longer learns would push out those from before.
        """
        self.owed |= _due(self.config.checkpoint.every, self.step)
        if last or self.owed:
            self.look()
        now = last or (self.owed and not self.skipped)
        self.owed &= not now
        return now

    def farewell(self) -> None:
        """Says so if a signal ends the run."""
        came = self.meeting.signal
        if came is not None and self.bar is not None:
            name = signal.Signals(came).name
            self.bar.say(
                f"{self.setup.method.name}: {name} after cycle {self.step}; saved, the "
                "same call continues"
            )

    def look(self) -> None:
        """Reads the metrics of the cycles that are pending, in order."""
        if not self.pending:
            return
        if self.saves is not None:
            self.saves.check()
        pending, self.pending = self.pending, []
        assert self.bar is not None
        with distributed.patience(f"finish cycle {pending[-1][0]}"):
            skipped = jax.device_get([m["skipped_in_a_row"] for _, m in pending])
        self.skipped = int(skipped[-1])
        for (step, metrics), rows in zip(pending, skipped, strict=True):
            if rows >= self.config.max_skipped:
                raise FloatingPointError(
                    checks.why_skipped(
                        self.setup,
                        step,
                        jax.device_get(metrics),
                        {"frozen": self.frozen, "state": self.state},
                        self.batch,
                    )
                )
            first, last = step == 1, step == self.config.cycles
            if first or last or _due(self.config.log_every, step):
                self.log(
                    step, {k: float(v) for k, v in jax.device_get(metrics).items()}
                )
        self.bar.update(pending[-1][0])
        now = time.monotonic()
        cycle = max((now - self.looked) / len(pending), 1e-9)
        self.ahead = max(1, min(AHEAD_CYCLES, int(AHEAD_SECONDS / cycle)))
        self.looked = now

    def log(self, step: int, values: Mapping[str, float]) -> None:
        assert self.bar is not None
        self.record = {**values, "seconds": self.seconds}
        self.writers.write(step, self.record)
        self.bar.note(step, values)

    def call_hooks(self, hooks: Hooks, ended: bool) -> dict[str, float] | None:
        """Runs the hooks that are due; metrics of the evaluation hook if it ran."""
        config, evaluated = self.config, None
        view = View(self.step, self.state, self.frozen, self.setup)
        every = config.evaluate_every
        evaluates = hooks.evaluate is not None and every > 0
        evaluates = evaluates and (ended or _due(every, self.step))
        samples = hooks.sample is not None and _due(config.sample_every, self.step)
        diagnoses = hooks.diagnose is not None
        diagnoses = diagnoses and _due(config.diagnose_every, self.step)
        if evaluates or samples or diagnoses:
            # A hook waits for the device anyway, and records keep their order.
            self.look()
        if hooks.diagnose is not None and diagnoses:
            found = self.numbers(hooks.diagnose, view)
            named = {f"diagnose/{k}": v for k, v in found.items()}
            self.writers.write(self.step, named)
        if hooks.evaluate is not None and evaluates:
            found = self.numbers(hooks.evaluate, view)
            # What is kept as best must not hang on a process's rounding.
            evaluated = distributed.of_first(found)
            best = config.checkpoint.best
            if best is not None and best not in evaluated:
                raise ValueError(
                    f"checkpoint.best is {best!r}, and the evaluation hook returned "
                    f"{sorted(evaluated)}"
                )
            named = {f"evaluate/{k}": v for k, v in evaluated.items()}
            self.writers.write(self.step, named)
        if hooks.sample is not None and samples:
            shown = self.hooked(hooks.sample, view)
            if isinstance(shown, Mapping):
                self.writers.images(self.step, shown)
        return evaluated

    def hooked(self, hook: Callable[[View], Any], view: View) -> Any:
        """What a hook returns; its first call, which compiles, is in no rate."""
        assert self.bar is not None
        began = time.monotonic()
        found = hook(view)
        if id(hook) not in self.called:
            self.called.add(id(hook))
            self.bar.skip(time.monotonic() - began)
        return found

    def numbers(self, hook: Callable[[View], Any], view: View) -> dict[str, float]:
        return {k: float(v) for k, v in self.hooked(hook, view).items()}

    def result(self, folder: epath.Path | None) -> TrainResult:
        return TrainResult(
            self.step,
            self.state,
            self.frozen,
            self.setup,
            self.seconds,
            self.record,
            folder,
        )

    def close(self) -> list[Exception]:
        """Waits for the last checkpoint, ends threads and files; says what failed."""
        self.profile.close()
        parts = (self.saves, self.writers, self.bar, self.feed, self.lock)
        return close_all(part for part in parts if part is not None)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
