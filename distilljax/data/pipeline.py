"""The one input pipeline: shuffled, stacked, sliced by process, exactly resumable.

Element ``k`` of the stream is a function of the seed and ``k`` alone. Indices are drawn
for a whole stack at once and the source gathers them in one call, so that one
background thread keeps up with any training step; a source that decodes files is read
by several. grain owns prefetching and the iterator's state.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import jax
import numpy as np

from distilljax.data.readers import Ended, Hanging, Readers
from distilljax.data.sources import Sample, Source
from distilljax.runtime.extras import needed

if TYPE_CHECKING:
    import grain


class _Stacks(Sequence):
    """Stacked batches by number, ``[stack, accumulate, B, ...]``."""

    def __init__(
        self,
        source: Source,
        shape: tuple[int, int, int],
        columns: slice,
        seed: int | None,
        offset: int,
        repeat: bool,
        pool: Readers | None,
    ):
        self._source = source
        self._pool = pool
        self._shape = shape
        self._columns = columns
        self._seed = seed
        self._offset = offset
        self._per_stack = shape[0] * shape[1] * shape[2]
        available = sys.maxsize if repeat else len(source)
        self._length = max(0, (available - offset) // self._per_stack)
        self._order = functools.lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        return self._length

    def _epoch(self, epoch: int) -> np.ndarray:
        size = len(self._source)
        if self._seed is None:
            return np.arange(size)
        return np.random.default_rng((self._seed, epoch)).permutation(size)

    def _indices(self, start: int) -> np.ndarray:
        parts, missing = [], self._per_stack
        while missing:
            epoch, first = divmod(start, len(self._source))
            part = self._order(epoch)[first : first + missing]
            parts.append(part)
            start, missing = start + len(part), missing - len(part)
        return np.concatenate(parts)

    def __getitem__(self, number) -> Sample:
        flat = self._indices(self._offset + int(number) * self._per_stack)
        kept = flat.reshape(self._shape)[..., self._columns]
        rows = take(self._source, kept.reshape(-1), self._pool)
        vary = getattr(self._source, "vary", None)
        if vary is not None and self._seed is not None:
            places = self._offset + int(number) * self._per_stack
            places = places + np.arange(self._per_stack).reshape(self._shape)
            places = places[..., self._columns].reshape(-1)
            rows = vary(rows, self._seed, places)
        return jax.tree.map(lambda a: a.reshape(kept.shape + a.shape[1:]), rows)


def take(source: Source, indices: np.ndarray, pool: Readers | None = None) -> Sample:
    """Samples of a source at ``indices [n]``, as a dict of fresh arrays ``[n, ...]``.

    Args:
      source: the source; without ``take`` of its own it is read item by item.
      indices: which samples.
      pool: reads, items side by side.

    Raises:
      ValueError: if the source raises, naming it and the sample.
      Hanging: if the pool waits for it too long.
    """
    gather = getattr(source, "take", None)
    who = f"source {_name(source)}: samples {_listed(indices)}"
    if gather is not None:
        try:
            if pool is None:
                return gather(indices)
            return pool.map(gather, [indices], who)[0]
        except (Hanging, Ended):
            raise
        except Exception as error:  # what a source raises is not known here
            _blame(source, _culprit(source, indices), error)
    size = max(1, -(-len(indices) // _PARTS))
    parts = [indices[i : i + size] for i in range(0, len(indices), size)]
    read = functools.partial(_items, source)
    done = map(read, parts) if pool is None else pool.map(read, parts, who)
    rows = [row for part in done for row in part]
    try:
        return jax.tree.map(lambda *values: np.stack(values), *rows)
    except ValueError as error:
        raise ValueError(
            f"source {_name(source)}: samples {_listed(indices)} must have equal "
            f"fields and shapes ({error}); bring them to one shape in the source"
        ) from error


# Pieces of a stack that threads take in turn.
_PARTS = 64


def _items(source: Source, indices: np.ndarray) -> list[Sample]:
    rows = []
    for index in indices:
        try:
            rows.append(source[int(index)])
        except Exception as error:  # what a source raises is not known here
            _blame(source, f"sample {index}", error)
    return rows


def _culprit(source: Source, indices: np.ndarray) -> str:
    """The first sample that cannot be read alone."""
    for index in indices:
        try:
            source[int(index)]
        except Exception:  # the caller reports it
            return f"sample {index}"
    return f"samples {_listed(indices)} together"


def _listed(indices: np.ndarray) -> str:
    text = ", ".join(str(i) for i in indices[:4])
    return text + (", ..." if len(indices) > 4 else "")


def _name(source: Source) -> str:
    return getattr(source, "name", type(source).__name__)


def _blame(source: Source, what: str, error: Exception) -> NoReturn:
    mend = "repair or remove it there, or pass a source without it"
    if isinstance(error, (IndexError, StopIteration)):
        mend = f"its len is {len(source)}; give it the number of samples it can read"
    raise ValueError(
        f"source {_name(source)}: {what} cannot be read ({type(error).__name__}: "
        f"{error}); {mend}"
    ) from error


def readers(source: Source, timeout: float = 0.0) -> Readers:
    """Threads for a source, as many as it asks for; one if it is read as a whole.

    Args:
      source: the source.
      timeout: see `Readers`.
    """
    threads = getattr(source, "read_threads", None) if _by_item(source) else 1
    return Readers(threads or os.cpu_count() or 1, timeout)


def _by_item(source: Source) -> bool:
    """Whether it is read item by item, by threads that it asks for."""
    asks = getattr(source, "read_threads", None) is not None
    return asks and getattr(source, "take", None) is None


def _positive(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def batches(
    source: Source,
    *,
    batch_size: int,
    stack: int = 1,
    accumulate: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    offset: int = 0,
    prefetch: int = 4,
    pool: Readers | None = None,
) -> grain.DatasetIterator:
    """Batches of a source for one training cycle after another.

    The stream is one permutation of the source after another, without a gap at the end
    of an epoch. It does not depend on ``process_count``: process ``p`` gets columns
    ``p B .. (p + 1) B`` of every global batch.

    Args:
      source: the data. One without ``take`` is read item by item, by ``read_threads``
        threads (0: one a processor) if it has such an attribute. One with ``vary(rows,
        seed, places)`` changes its samples anew at every place of a shuffled stream.
      batch_size: samples of one micro-batch over all processes.
      stack: batches per cycle (the repeats of all phases that take a fresh one).
      accumulate: micro-batches per update.
      seed: of the permutations, ``>= 0``.
      shuffle: whether the samples come in random order.
      repeat: whether epochs follow each other for ever; otherwise the samples after the
        last whole stack are left out.
      process_index: this process, ``0 .. process_count - 1``.
      process_count: processes; must divide ``batch_size``.
      offset: samples of the stream that were used before the first stack (for a change
        of ``stack`` between training stages).
      prefetch: stacks made in advance by one background thread; 0 makes each on demand.
      pool: threads that read, and limit how long a source may hang; see `readers`.
        Default no limit.

    Returns:
      An iterator over dicts of fresh numpy arrays ``[stack, accumulate, B, ...]`` with
      ``B = batch_size / process_count``. Its ``get_state()`` and ``set_state(state)``
      resume exactly; `grain.checkpoint` saves it with Orbax; ``close()`` ends its
      thread.

    Raises:
      ValueError: on sizes below 1, a batch that the processes do not divide, or a
        source that is empty or smaller than one stack when it is not repeated; from
        ``next``, if the source raises, with its name and the sample's index.
    """
    _positive(
        batch_size=batch_size,
        stack=stack,
        accumulate=accumulate,
        process_count=process_count,
    )
    if batch_size % process_count:
        raise ValueError(
            f"batch_size must be a multiple of the {process_count} processes, got "
            f"{batch_size}; the nearest is "
            f"{max(1, round(batch_size / process_count)) * process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must lie in 0 .. {process_count - 1}, got {process_index}"
        )
    for name, value in (("seed", seed), ("offset", offset), ("prefetch", prefetch)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    if len(source) == 0:
        raise ValueError("source must hold at least one sample, got an empty one")
    local = batch_size // process_count
    stacks = _Stacks(
        source,
        (stack, accumulate, batch_size),
        slice(process_index * local, (process_index + 1) * local),
        seed if shuffle else None,
        offset,
        repeat,
        readers(source) if pool is None and _by_item(source) else pool,
    )
    if len(stacks) == 0:
        raise ValueError(
            f"source has {len(source)} samples, fewer than offset {offset} plus one "
            f"stack of {stack} x {accumulate} x {batch_size}, and repeat=False; lower "
            "batch_size or pass repeat=True"
        )
    with needed("the input pipeline"):
        import grain

    options = grain.ReadOptions(
        num_threads=1 if prefetch else 0, prefetch_buffer_size=prefetch
    )
    return iter(grain.MapDataset.source(stacks).to_iter_dataset(options))
