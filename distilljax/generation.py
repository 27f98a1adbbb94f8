"""Batch generation: samplers of methods and teachers, with progress, resumable.

The noise of sample ``i`` depends on the seed and ``i`` alone, so that two samplers with
one seed start from the same noise whatever their batch size.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.binding import Bound, Network
from distilljax.method import Method
from distilljax.sampling import sample as sample_steps
from distilljax.solvers import Heun, Solver, solve
from distilljax.times import EvenGrid, Grid

Array = jax.Array
Sampler = Callable[[Any, Array, Any, Array], Array]


def student_sampler(
    method: Method, network: Network, steps: int, *, grid: Grid | None = None
) -> Sampler:
    """The sampler of a method's student.

    Args:
      method: says grid, re-noising rule and path.
      network: network of the sampled role.
      steps: number of network evaluations.
      grid: another time grid than the method's.

    Returns:
      ``(params, eps, cond, key) -> x``, one program.
    """
    how = method.sampling
    path = network.path if how.path is None else how.path
    if path is None:
        raise ValueError(f"network {network.name!r} does not say its path")
    times = (how.grid if grid is None else grid)(steps, path)

    def run(params: Any, eps: Array, cond: Any, key: Array) -> Array:
        net = Bound(how.role, network, params)
        if how.view is not None:
            f = how.view(net, cond, path)
        else:
            f = net.flow_map(
                cond, path=path, two_time=how.two_time, boundary=how.boundary
            )
        x = path.start(eps, t=times[0])
        x = sample_steps(f, x, times, path=path, renoise=how.renoise, key=key)
        assert isinstance(x, jax.Array)
        return x

    return run


def teacher_sampler(
    network: Network,
    nfe: int = 50,
    *,
    solver: Solver = Heun(),
    guidance: float = 1.0,
    grid: Grid = EvenGrid(),
) -> Sampler:
    """A teacher's ODE sampler with a given number of network evaluations.

    Args:
      network: teacher network.
      nfe: evaluations per sample without guidance; must be a multiple of the solver's
        evaluations per step.
      solver: see `distilljax.solvers`.
      guidance: scale ``w``; doubles the evaluations when not 1.
      grid: time grid.

    Returns:
      ``(params, eps, cond, key) -> x``, one program.
    """
    path = network.path
    if path is None:
        raise ValueError(f"network {network.name!r} does not say its path")
    steps = next((n for n in range(1, nfe + 1) if solver.evaluations(n) == nfe), 0)
    if not steps:
        raise ValueError(
            f"nfe {nfe} cannot be spent by {type(solver).__name__}: "
            f"{solver.evaluations(1)} evaluations make one step"
        )
    times = grid(steps, path)

    def run(params: Any, eps: Array, cond: Any, key: Array) -> Array:
        # In the network's own kind: the solver knows what each leaves open at an end.
        teacher = Bound("teacher", network, params)
        field = teacher.guided({"cond": cond}, guidance, kind=teacher.kind)
        x = solve(
            field,
            path.start(eps),
            times,
            path=path,
            solver=solver,
            kind=teacher.kind,
            key=key,
        )
        assert isinstance(x, jax.Array)
        return x

    return run


def initial_noise(
    seed: int, start: int, count: int, sample_shape: tuple[int, ...]
) -> Array:
    """Noise of samples ``start .. start + count - 1``; a function of seed and index."""
    key = jax.random.key(seed)
    indices = jnp.arange(start, start + count)
    return jax.vmap(
        lambda i: jax.random.normal(jax.random.fold_in(key, i), sample_shape)
    )(indices)


def check_labels(labels: Any, num_classes: int | None) -> np.ndarray:
    """Labels as int32.

    Raises:
      ValueError: if they are no integers, empty or out of range.
    """
    out = np.asarray(labels)
    if out.ndim != 1 or out.size == 0 or not np.issubdtype(out.dtype, np.integer):
        raise ValueError(
            f"labels must be a non-empty list of integers, got shape {out.shape} and "
            f"type {out.dtype}"
        )
    if num_classes is not None and (out.min() < 0 or out.max() >= num_classes):
        raise ValueError(
            f"labels must lie in 0 .. {num_classes - 1}, got {out.min()} .. {out.max()}"
        )
    return out.astype(np.int32)


def generate(
    sampler: Sampler,
    params: Any,
    *,
    sample_shape: tuple[int, ...],
    count: int | None = None,
    labels: Any = None,
    cond: Any = None,
    start: Any = None,
    seed: int = 0,
    batch_size: int = 512,
    num_classes: int | None = None,
    resume: str | os.PathLike | None = None,
    tag: str = "",
    progress: bool | None = None,
) -> np.ndarray:
    """Generates many samples in equal batches.

    Args:
      sampler: see `student_sampler`, `teacher_sampler`.
      params: parameters of its network.
      sample_shape: shape of one sample.
      count: number of samples; default one per label, condition or start.
      labels: class labels, one per sample; None for unconditional networks.
      cond: in place of labels, conditions of another kind: arrays ``[count, ...]``, or
        a pytree of them.
      start: arrays ``[count, *sample_shape]`` to start from in place of noise.
      seed: of noise and re-noising.
      batch_size: samples per program call; the last batch is padded.
      num_classes: range of the labels, checked.
      resume: folder for finished batches; an interrupted call with the same arguments
        continues there, and the folder is removed at the end.
      tag: what was sampled; a folder of another tag, seed or batch size is refused.
      progress: shows a bar; default on a terminal.

    Returns:
      Samples ``[count, *sample_shape]``, float32.
    """
    if labels is not None:
        if cond is not None:
            raise ValueError("pass labels or cond, got both")
        cond = check_labels(labels, num_classes)
    inputs = jax.tree.map(np.asarray, (cond, start))
    named = {"cond" if labels is None else "labels": cond, "start": start}
    count = _common_length(named, count)
    if start is not None and np.shape(start)[1:] != tuple(sample_shape):
        raise ValueError(
            f"start must be [count, {', '.join(map(str, sample_shape))}], got "
            f"{np.shape(start)}"
        )
    if not count or count < 1:
        raise ValueError(f"count must be at least 1 (or labels given), got {count}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    batch_size = min(batch_size, count)
    store = _Store(resume, tag, seed, batch_size, count, inputs)
    run = jax.jit(sampler)
    starts = range(0, count, batch_size)
    shown = sys.stderr.isatty() if progress is None else progress
    if shown:
        from tqdm import tqdm

        starts = tqdm(starts, desc=tag or "sampling", unit="batch")
    out = np.empty((count, *sample_shape), np.float32)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    for first in starts:
        rows = slice(first, min(first + batch_size, count))
        found = store.load(first)
        if found is None:
            part, eps = _batch(inputs, rows, batch_size)
            if eps is None:
                eps = initial_noise(seed, first, batch_size, sample_shape)
            found = np.asarray(run(params, eps, part, jax.random.fold_in(key, first)))
            found = found[: rows.stop - rows.start]
            store.save(first, found)
        out[rows] = found
    store.clear()
    return out


def _common_length(inputs: Mapping[str, Any], count: int | None) -> int | None:
    """Rows of all inputs and the count, which must agree."""
    known, source = count, "count"
    for name, tree in inputs.items():
        for leaf in jax.tree.leaves(tree):
            if known is not None and known != len(leaf):
                raise ValueError(f"{source} {known} and {len(leaf)} {name} disagree")
            known, source = len(leaf), name
    return known


def _batch(inputs: Any, rows: slice, size: int) -> Any:
    """Rows of the inputs, the last one repeated up to a whole batch."""

    def padded(values: np.ndarray) -> Array:
        part = values[rows]
        wide = [(0, size - len(part)), *[(0, 0)] * (part.ndim - 1)]
        return jnp.asarray(np.pad(part, wide, "edge"))

    return jax.tree.map(padded, inputs)


class _Store:
    """Finished batches on disk, refused if they belong to another call."""

    def __init__(self, folder, tag, seed, batch_size, count, inputs):
        self.folder = None if folder is None else pathlib.Path(folder)
        if self.folder is None:
            return
        parts = [leaf.tobytes() for leaf in jax.tree.leaves(inputs)]
        digest = hashlib.sha256(b"".join(parts)).hexdigest()
        meta = {
            "tag": tag,
            "seed": seed,
            "batch_size": batch_size,
            "count": count,
            "inputs": digest[:16],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "meta.json"
        if path.exists():
            had = json.loads(path.read_text())
            if had != meta:
                raise ValueError(
                    f"resume folder {self.folder} holds batches of another call: "
                    f"{had}, asked for {meta}; remove it or choose another folder"
                )
        path.write_text(json.dumps(meta))

    def _path(self, start: int) -> pathlib.Path:
        assert self.folder is not None
        return self.folder / f"batch_{start:08d}.npy"

    def load(self, start: int) -> np.ndarray | None:
        if self.folder is None or not self._path(start).exists():
            return None
        return np.load(self._path(start))

    def save(self, start: int, x: np.ndarray) -> None:
        if self.folder is None:
            return
        part = self._path(start).with_suffix(".tmp.npy")
        np.save(part, x)
        os.replace(part, self._path(start))

    def clear(self) -> None:
        if self.folder is None:
            return
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()
