"""Several processes as one run: how they meet, and what they must agree on.

All processes call the same functions in the same order; what only one of them knows (a
signal, a failure, what lies in the run folder) is exchanged at cycles that follow from
cycle numbers alone, so that none waits for a program which another does not start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

# Seconds after which a silent process counts as dead, and those that an ending one
# waits for the others to end too.
HEARTBEAT, SHUTDOWN = 100, 60
# About so many seconds pass between two exchanges of signals.
MEET_SECONDS = 0.5
# Seconds after which waiting for the others is given up: one that hangs may still show
# signs of life. So much longer may one of them compile, evaluate or save.
PATIENCE = 1800.0


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    connect: int = 300,
    heartbeat: int = HEARTBEAT,
    shutdown: int = SHUTDOWN,
) -> None:
    """Joins the processes of a run; call it before anything asks jax for a device.

    Without arguments, Slurm, Open MPI, Cloud TPU and GKE say who is who. Elsewhere all
    three are given, here or in the environment (``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES``, ``JAX_PROCESS_ID``).

    Args:
      coordinator: ``host:port`` of process 0, which all processes reach.
      processes: their number.
      process: number of this one, from 0.
      connect: seconds to wait for the other processes at the start.
      heartbeat: seconds after which a silent process counts as dead; the others are
        then ended with a message.
      shutdown: seconds that a process which ends waits for the others.

    Raises:
      ValueError: if only some of the three are given, one does not fit, or none is
        given and no known cluster is found.
      RuntimeError: if jax was used before. If the others do not come, jax ends the
        process with a message.
    """
    if coordinator is None:
        coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if processes is None:
        processes = _from_environment("JAX_NUM_PROCESSES")
    if process is None:
        process = _from_environment("JAX_PROCESS_ID")
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    known = {name: value for name, value in given.items() if value is not None}
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(
            "coordinator must be host:port of process 0, for example "
            f"10.0.0.1:1234, got {coordinator!r}"
        )
    if processes is not None and not 0 <= (process or 0) < processes:
        raise ValueError(
            f"process must lie in 0 .. processes - 1, got process={process} and "
            f"processes={processes}"
        )
    # Signals are exchanged in `Meeting`, SIGINT too; jax's own service would swallow a
    # SIGTERM that comes before training starts.
    jax.config.update("jax_enable_preemption_service", False)
    if len(known) == 3:
        print(
            f"process {process} of {processes}: waits up to {connect} s for the others "
            f"at {coordinator}",
            file=sys.stderr,
            flush=True,
        )
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if len(known) == 3 else None,
            initialization_timeout=connect,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=shutdown,
        )
    except ValueError as error:
        came = ", ".join(f"{name}={value}" for name, value in known.items())
        raise ValueError(
            f"no cluster was found ({error}) and {came or 'nothing'} was given: pass "
            "coordinator=host:port, processes=N and process=0 .. N-1 (on the command "
            "line --coordinator, --processes, --process), a different process to each"
        ) from error


def initialize_from(options: argparse.Namespace) -> None:
    """Joins the processes as the command line says; nothing if it says nothing.

    Args:
      options: ``distributed``, ``coordinator``, ``processes``, ``process``, ``fresh``.

    Raises:
      ValueError: see `initialize`, and on ``fresh`` of several processes.
    """
    given = options.coordinator, options.processes, options.process
    if not options.distributed and all(value is None for value in given):
        return
    if options.fresh:
        raise ValueError(
            "--fresh removes a run that other processes may have started already: "
            "remove the folder yourself, or choose another --out"
        )
    initialize(*given)


def _from_environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be an integer, got {text!r}") from None


def is_first() -> bool:
    """Whether this process writes what is one file."""
    return jax.process_index() == 0


@contextlib.contextmanager
def patience(what: str) -> Iterator[None]:
    """Ends this process with a message if the others keep it waiting for too long.

    Args:
      what: the block, in which it waits for the others, in words.
    """
    if jax.process_count() == 1:
        yield
        return
    timer = threading.Timer(PATIENCE, _give_up, (what, PATIENCE))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(what: str, seconds: float) -> None:
    print(
        f"process {jax.process_index()} waited {seconds:.0f} s for the others to {what}"
        ", so that one of them must hang: their logs end where it does. The same "
        "command continues from the newest checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _rows(row: np.ndarray) -> np.ndarray:
    """A row of numbers of each process, ``[processes, n]``."""
    if jax.process_count() == 1:
        return row[None]
    with patience("exchange what they know"):
        return np.asarray(multihost_utils.process_allgather(row))


def of_all(value: Any) -> list[Any]:
    """What each process says, by process; all wait for all.

    Args:
      value: JSON value.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = _rows(np.asarray([len(data)], np.int32))[:, 0]
    rows = _rows(np.pad(data, (0, int(sizes.max()) - len(data))))
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
    ]


def of_first(value: Any) -> Any:
    """What the first process says, a JSON value; that of the others is not used."""
    return of_all(value if is_first() else None)[0]


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Raises in every process what one of them raises inside; all wait for all.

    Args:
      what: the block in words, for the others' message.

    Raises:
      ValueError: in a process whose own block did not fail; says which one did.
    """
    error = None
    try:
        yield
    except Exception as raised:  # raised again below, when all know
        error = raised
    found = of_all(None if error is None else str(error) or type(error).__name__)
    if error is not None:
        raise error
    for process, text in enumerate(found):
        if text is not None:
            raise ValueError(f"process {process} failed to {what}: {text}")


def whole(array: Any) -> np.ndarray:
    """An array on this host, gathered from the other processes where it lies there."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if not array.is_fully_replicated:
        sharding = array.sharding
        assert isinstance(sharding, NamedSharding)
        every = NamedSharding(sharding.mesh, PartitionSpec())
        array = jax.jit(_same, out_shardings=every)(array)
    return np.asarray(array)


def _same(array: jax.Array) -> jax.Array:
    return array


def spread(tree: Any, shardings: Any) -> Any:
    """A tree of arrays on the devices of all processes, which have equal ones.

    Args:
      tree: host arrays, the same in every process, or arrays placed already.
      shardings: tree of shardings.
    """

    def one(array: Any, place: jax.sharding.Sharding) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, place)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, place, host.__getitem__)

    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(one, tree, shardings)


class Meeting:
    """Cycles after which the processes exchange signals and the first one's pace.

    The next meeting follows from the numbers exchanged in this one, so that all come to
    it after the same cycle, however far one is ahead of another.

    Attributes:
      signal: number of a signal that reached one of them; all end after this cycle.
      ahead: cycles that each dispatches before it reads their metrics.
    """

    def __init__(self, step: int, ahead: int = 1):
        """Meets first after cycle ``step + 1``."""
        self.signal: int | None = None
        self.ahead = ahead
        self._next, self._stride, self._met = step + 1, 1, time.monotonic()

    def after(self, step: int, came: int | None, ahead: int, ended: bool) -> None:
        """Exchanges what is known after a cycle; one process has nothing to wait for.

        Args:
          step: cycles done.
          came: number of the signal that reached this process.
          ahead: what its own clock suggests.
          ended: whether this is the run's last cycle.
        """
        if jax.process_count() == 1:
            self.signal, self.ahead = came, ahead
            return
        if step < self._next and not ended:
            return
        now = time.monotonic()
        cycle = max((now - self._met) / self._stride, 1e-9)
        stride = max(1, min(2 * self._stride, int(MEET_SECONDS / cycle)))
        rows = _rows(np.asarray([came or 0, ahead, stride], np.int32))
        self.signal = int(rows[:, 0].max()) or None
        self.ahead, self._stride = int(rows[0, 1]), int(rows[0, 2])
        self._next, self._met = step + self._stride, time.monotonic()
