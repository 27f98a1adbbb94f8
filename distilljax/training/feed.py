"""Batches of a run: the right stack for every stage, placed on the devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from distilljax.core.method import Method, batches
from distilljax.data.readers import Readers
from distilljax.training.config import TrainConfig
from distilljax.training.placement import ROWS, sharding, share
from distilljax.training.roles import Setup


def stage_of(method: Method, step: int) -> int:
    """Number of the stage of a cycle; after the last stage their count."""
    ends = [stage.until for stage in method.stages]
    return sum(step >= until for until in ends)


class Feed:
    """Batches of cycles ``[n, accumulate, B, ...]``.

    A source gets one iterator a stage, with as many batches a cycle as the stage's
    phases take; an iterator given serves all stages. Of several processes each reads
    its own columns ``B`` of a batch.
    """

    def __init__(
        self, method: Method, data: Any, config: TrainConfig, mesh: Mesh | None = None
    ):
        """Takes a source or an iterator with ``get_state`` and ``set_state``.

        Each process reads its own columns of the batches of a source; an iterator gives
        those of its process.

        Raises:
          ValueError: on an iterator whose position could not be restored.
        """
        self._method, self._data, self._config = method, data, config
        self._share = share(mesh)
        self._given = hasattr(data, "__next__")
        if self._given:
            lacks = [n for n in ("get_state", "set_state") if not hasattr(data, n)]
            if lacks:
                raise ValueError(
                    f"data is an iterator without {' and '.join(lacks)}, so that a run "
                    "could not be continued; pass a source, or an iterator with both"
                )
        self._stage = -1
        self._iterator: Any = data if self._given else None
        self._readers = Readers(1, config.data_timeout)

    def _samples_before(self, stage: int) -> int:
        start, total = 0, 0
        for one in self._method.stages[:stage]:
            total += (one.until - start) * batches(one.phases)
            start = one.until
        return total * self._config.batch_size

    def _open(self, stage: int) -> None:
        from distilljax.data import pipeline

        self.close()
        config, method = self._config, self._method
        stages = method.stages
        phases = stages[stage].phases if stage < len(stages) else method.phases
        self._readers = pipeline.readers(self._data, config.data_timeout)
        stacked = config.stacked(method.trained)
        self._iterator = pipeline.batches(
            self._data,
            batch_size=config.batch_size // stacked,
            stack=batches(phases),
            accumulate=stacked,
            seed=config.seed,
            process_index=self._share[0],
            process_count=self._share[1],
            offset=self._samples_before(stage),
            pool=self._readers,
        )

    def next(self, step: int) -> Any:
        """The batch of cycle ``step``; cycles are asked for in order.

        Raises:
          ValueError: if an iterator given ends before the run.
          TimeoutError: if the source or iterator hangs, see ``data_timeout``.
        """
        stage = stage_of(self._method, step)
        if stage != self._stage and not self._given:
            self._open(stage)
        self._stage = stage
        try:
            if self._given:
                name = f"data iterator {type(self._data).__name__}: cycle {step}"
                return self._readers.map(next, [self._iterator], name)[0]
            return next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"data ended before cycle {step} of {self._config.cycles}; pass an "
                "iterator that repeats, or fewer cycles"
            ) from None

    def state(self) -> dict[str, Any]:
        """Position after the batch of the last cycle, JSON values."""
        return {"stage": self._stage, "position": self._iterator.get_state()}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Continues with the batch of cycle ``step``."""
        stage = stage_of(self._method, step)
        if self._given:
            self._iterator.set_state(state["position"])
        else:
            self._open(stage)
            if state["stage"] == stage:
                self._iterator.set_state(state["position"])
        self._stage = stage

    def close(self) -> None:
        """Ends the threads that read, and an iterator that was opened here."""
        self._readers.close()
        if not self._given and hasattr(self._iterator, "close"):
            self._iterator.close()


def place(setup: Setup, batch: Any) -> Any:
    """Puts a batch on the devices of a mesh, split along its batch axis.

    Every process gives its own columns. Without a mesh the batch stays as it is: the
    program takes it from the host itself, which costs less than a transfer asked for
    from Python.
    """
    if setup.mesh is None:
        return batch
    split = sharding(setup.mesh, None, None, ROWS)
    if jax.process_count() == 1:
        return jax.device_put(batch, split)
    return jax.tree.map(
        lambda part: jax.make_array_from_process_local_data(split, np.asarray(part)),
        batch,
    )
