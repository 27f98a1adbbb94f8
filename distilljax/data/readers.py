"""Threads that read, and a limit to how long they may hang."""

from __future__ import annotations

import queue
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any

# Seconds without an answer after which a line says who is waited for.
PATIENCE = 10.0
# Seconds between two looks whether the run has ended.
_LOOK = 0.5


class Hanging(TimeoutError):
    """Nothing came for too long."""


class Ended(RuntimeError):
    """The readers were closed while a call waited."""


def _serve(tasks: queue.SimpleQueue, finished: list[float]) -> None:
    while (task := tasks.get()) is not None:
        future, function, argument = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(argument))
            except BaseException as error:  # it belongs to who waits
                future.set_exception(error)
        finished[0] = time.monotonic()
        # Nothing of a task is kept while the thread waits for the next.
        del task, future, function, argument


class Readers:
    """A few threads that call functions, with a limit on the time without a result.

    The threads are daemons, unlike those of `concurrent.futures`: one that hangs in a
    source for ever does not keep the process alive.
    """

    def __init__(self, threads: int = 1, timeout: float = 0.0):
        """Starts no thread before the first call.

        Args:
          threads: how many, at least 1.
          timeout: seconds without a result after which `map` gives up; 0 for none.
        """
        self.timeout = timeout
        self._count, self._started = threads, False
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._finished = [0.0]
        self._closed = threading.Event()
        self._warned = False

    def _start(self) -> None:
        self._started = True
        for _ in range(self._count):
            args = (self._tasks, self._finished)
            threading.Thread(
                target=_serve, args=args, name="distilljax_read", daemon=True
            ).start()
        # The threads know the queue alone, so that they end with this object.
        weakref.finalize(self, _end, self._tasks, self._count)

    def map(
        self, function: Callable[[Any], Any], parts: Iterable[Any], who: str
    ) -> list[Any]:
        """Results of a function of each part, in order.

        Args:
          function: called in the threads.
          parts: its arguments.
          who: what is waited for, for messages.

        Raises:
          Hanging: after ``timeout`` seconds without a result.
          Ended: if `close` is called meanwhile.
          Exception: what the function raises, for the first part that fails.
        """
        if not self._started:
            self._start()
        waiting = [futures.Future() for _ in parts]
        began = time.monotonic()
        for future, part in zip(waiting, parts, strict=True):
            self._tasks.put((future, function, part))
        try:
            return [self._result(future, began, who) for future in waiting]
        finally:
            for future in waiting:
                future.cancel()

    def _result(self, future: futures.Future, began: float, who: str) -> Any:
        while not futures.wait([future], timeout=_LOOK).done:
            if self._closed.is_set():
                raise Ended("the run has ended")
            quiet = time.monotonic() - max(began, self._finished[0])
            if self.timeout and quiet > self.timeout:
                raise Hanging(
                    f"{who}: nothing came for {self.timeout:g} s, so that it counts as "
                    "hanging; look at its disk, network or locks, or raise "
                    "data_timeout in the config if it is only slow. What was saved is "
                    "intact, and the same call continues"
                )
            if quiet > PATIENCE and not self._warned:
                self._warned = True
                limit = f"up to {self.timeout:g} s" if self.timeout else "for ever"
                warnings.warn(
                    f"{who}: nothing came for {PATIENCE:g} s; waiting {limit} "
                    "(data_timeout)",
                    stacklevel=2,
                )
        return future.result()

    def close(self) -> None:
        """Ends waiting calls and idle threads; none that hangs is waited for."""
        self._closed.set()
        _end(self._tasks, self._count)


def _end(tasks: queue.SimpleQueue, count: int) -> None:
    for _ in range(count):
        tasks.put(None)
