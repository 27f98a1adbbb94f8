"""Profiler traces of some cycles of a run."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import jax
from etils import epath


class Profile:
    """Traces cycles ``first .. last`` of a run, counted from 1.

    Every phase's operations carry the names of `binding.scope` (``teacher``,
    ``student``, ``critic/...``), ``tangent`` and ``optimizer``.
    """

    def __init__(
        self,
        cycles: tuple[int, int] | None,
        folder: epath.Path | None,
        total: int = 1,
    ):
        """Takes ``(first, last)`` of ``total`` cycles, or None for no trace.

        Raises:
          ValueError: if the run has no such cycles, or no folder for the trace.
        """
        if cycles is not None and not 1 <= cycles[0] <= cycles[1] <= total:
            raise ValueError(
                f"profile must be the first and last cycle, 1 <= first <= last <= "
                f"{total}, got {cycles}; the first cycle of a run compiles, so leave "
                "it out"
            )
        if cycles is not None and folder is None:
            raise ValueError("profile needs a run folder, got folder=None")
        self._cycles, self._folder, self._on = cycles, folder, False

    def cycle(self, step: int, state: Any) -> AbstractContextManager[Any]:
        """Context of the dispatch of cycle ``step``; the trace starts at the first.

        Args:
          step: number of the cycle.
          state: what the cycles before it return; waited for, so that the trace holds
            none of them.
        """
        if self._cycles is None or not self._cycles[0] <= step <= self._cycles[1]:
            return contextlib.nullcontext()
        if not self._on:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        return jax.profiler.StepTraceAnnotation("cycle", step_num=step)

    def after(self, step: int, state: Any) -> None:
        """Ends the trace when cycle ``step`` is the last of it."""
        if self.missed(step):
            self.close(state)

    def missed(self, step: int) -> bool:
        """Whether a run that continues after cycle ``step`` is past all of them."""
        return self._cycles is not None and step >= self._cycles[1]

    def close(self, state: Any = None) -> None:
        """Ends a trace that is still on, after waiting for the state."""
        if self._on:
            self._on = False
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
