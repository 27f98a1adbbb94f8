"""Pairs and trajectories of a teacher, written once to train many students.

A folder of `data.pairs`, written part by part: a call that was interrupted goes on
after its last whole part, and several processes share the parts among them.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from distilljax import api, generation, storage
from distilljax.binding import Bound, Network
from distilljax.data import array_records, labels
from distilljax.data.pipeline import take
from distilljax.data.sources import Source
from distilljax.draws import follow
from distilljax.errors import unknown
from distilljax.solvers import Heun, Solver
from distilljax.times import EvenGrid, Grid
from distilljax.training.checkpoints import differing, fingerprint

Array = jax.Array

KINDS = ("pairs", "trajectory")
# Size of a part: what a kill costs at most, and a good size of a file in a bucket.
PART_BYTES = 128 * 2**20


def trajectory_sampler(
    network: Network,
    nfe: int,
    segments: int,
    *,
    solver: Solver = Heun(),
    guidance: float = 1.0,
    grid: Grid = EvenGrid(),
) -> tuple[Callable[..., dict[str, Array]], tuple[float, ...]]:
    """A teacher's states at the grid times of its ODE, and the end.

    Args:
      network: teacher network.
      nfe: evaluations per sample without guidance.
      segments: ``K``, must divide the solver's steps.
      solver: see `distilljax.solvers`.
      guidance: scale ``w``; doubles the evaluations when not 1.
      grid: time grid of the segments.

    Returns:
      ``(params, eps, cond, key) -> {"states": [B, K, ...], "x0": [B, ...]}`` and the
      ``K`` times of the states.
    """
    path = network.path
    if path is None:
        raise ValueError(f"network {network.name!r} does not say its path")
    steps = generation.steps_of(solver, nfe)
    if segments < 1 or steps % segments:
        raise ValueError(
            f"segments must divide the {steps} steps that nfe={nfe} gives, got "
            f"{segments}"
        )
    times = grid(segments, path)

    def run(params: Any, eps: Array, cond: Any, key: Array) -> dict[str, Array]:
        teacher = Bound("teacher", network, params)
        states, end = follow(
            teacher.guided({"cond": cond}, guidance, kind=teacher.kind),
            path.start(eps, t=times[0]),
            times,
            steps // segments,
            path=path,
            solver=solver,
            kind=teacher.kind,
            key=key,
        )
        return {"x0": end, "states": jnp.moveaxis(states, 0, 1)}

    return run, times[:-1]


def write_pairs(
    teacher: api.Fitted | str | os.PathLike,
    folder: str | os.PathLike,
    *,
    count: int,
    kind: str = "pairs",
    nfe: int = 50,
    segments: int = 4,
    solver: Solver = Heun(),
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int = 512,
    conditions: Source | None = None,
    progress: bool | None = None,
) -> epath.Path:
    """Writes what a teacher makes of noise; see `data.pairs`.

    Sample ``i`` depends on the seed and ``i`` alone: its noise is that of `generate`,
    its condition is number ``i mod N`` of the ``N`` conditions.

    Args:
      teacher: fitted teacher, or the folder of its run.
      folder: where to; in a bucket too. What an interrupted call with the same settings
        left there is kept.
      count: number of samples.
      kind: ``pairs`` keeps noise ``eps`` and sample ``x0``; ``trajectory`` the
        ``states`` at the start of each segment, their ``times`` and ``x0``.
      nfe: network evaluations per sample without guidance.
      segments: states of a trajectory; must divide the solver's steps.
      solver: see `distilljax.solvers`.
      guidance: scale ``w``.
      seed: of the noise.
      batch_size: samples per program call, split over the devices of this process.
      conditions: a source with ``cond``; default every class in turn, where the teacher
        has classes.
      progress: shows a bar; default on a terminal.

    Returns:
      The folder.

    Raises:
      ValueError: on values out of range, a folder of other settings, or samples that
        are not finite.
    """
    if kind not in KINDS:
        raise ValueError(unknown("kind", kind, KINDS))
    devices = jax.local_devices()
    for name, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if batch_size % len(devices):
        raise ValueError(
            f"batch_size must be a multiple of the {len(devices)} devices, got "
            f"{batch_size}"
        )
    fitted = teacher if isinstance(teacher, api.Fitted) else api.load(teacher)
    shape, network = fitted.sample_shape, fitted.network
    if conditions is None and fitted.num_classes is not None:
        conditions = labels(fitted.num_classes, shape)
    how: dict[str, Any] = {"solver": solver, "guidance": guidance}
    stored: dict[str, Any] = {"x0": ("float32", shape)}
    if kind == "pairs":
        plain, times = generation.teacher_sampler(network, nfe, **how), None
        sampler = functools.partial(_with_noise, plain)
        stored["eps"] = ("float32", shape)
    else:
        sampler, times = trajectory_sampler(network, nfe, segments, **how)
        stored["states"] = ("float32", (segments, *shape))
        stored["times"] = ("float32", (segments,))
    if conditions is not None:
        first = conditions[0]["cond"]
        stored["cond"] = (first.dtype.name, first.shape)
    size = array_records.packed(stored).itemsize
    part = batch_size * max(1, PART_BYTES // (size * batch_size))
    settings = {
        "teacher": fitted.method.name,
        "params": fingerprint(fitted.params),
        "path": repr(network.path),
        "kind": kind,
        "count": count,
        "nfe": nfe,
        "solver": repr(solver),
        "guidance": guidance,
        "times": None if times is None else list(times),
        "seed": seed,
        "batch_size": batch_size,
        "part": part,
        "conditions": None if conditions is None else conditions.fingerprint,
    }
    folder = _claim(epath.Path(folder), settings)
    run = _on_devices(sampler, fitted.params, devices, seed, batch_size, shape)
    starts = range(0, count, part)
    parts = [(i, a, min(a + part, count)) for i, a in enumerate(starts)]
    mine = parts[jax.process_index() :: jax.process_count()]
    missing = [p for p in mine if not _record(folder, p[0]).exists()]
    with _bar(count, mine, missing, progress) as bar:
        for number, first, last in missing:

            def rows(first: int = first, last: int = last) -> Iterator[np.ndarray]:
                for start in range(first, last, batch_size):
                    n = min(batch_size, last - start)
                    sample = run(start, _conditions(conditions, start, batch_size))
                    if times is not None:
                        sample["times"] = np.tile(
                            np.asarray(times, np.float32), (batch_size, 1)
                        )
                    _check_finite(sample, start)
                    yield array_records.pack(sample, stored)[:n]
                    bar.update(n)

            path = folder / array_records.shard_name(number, len(parts))
            done = array_records.write_shard(path, rows())
            storage.write_atomic(
                _record(folder, number), json.dumps([path.name, *done])
            )
    records = [_record(folder, i) for i, _, _ in parts]
    # The process that finds everything there says so; two would write the same.
    if all(record.exists() for record in records):
        shards = [tuple(json.loads(record.read_text())) for record in records]
        classes = None if conditions is None else conditions.num_classes
        array_records.describe(folder, stored, classes, shards, origin=settings)
    return folder


def _with_noise(sampler: Any, params: Any, eps: Array, cond: Any, key: Array):
    return {"x0": sampler(params, eps, cond, key), "eps": eps}


def _record(folder: epath.Path, number: int) -> epath.Path:
    """The file that says that a part is whole."""
    return folder / "parts" / f"{number:05d}.json"


def _claim(folder: epath.Path, settings: dict[str, Any]) -> epath.Path:
    """Makes the folder these settings', or refuses."""
    path = folder / "pairs.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        changed = differing(json.loads(path.read_text()), settings)
        if changed:
            raise ValueError(
                f"{folder} holds pairs of other settings, which are left as they are. "
                f"Different (there -> now): {'; '.join(changed)}. Choose another "
                "folder, or the old settings to continue."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else; choose an empty folder")
    else:
        storage.write_atomic(path, json.dumps(settings, indent=1) + "\n")
    return folder


def _on_devices(
    sampler: Any,
    params: Any,
    devices: list[Any],
    seed: int,
    batch_size: int,
    shape: tuple[int, ...],
) -> Callable[[int, np.ndarray | None], dict[str, np.ndarray]]:
    """``(start, cond) -> sample`` with the batch split over the devices."""
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )
    whole, split = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("data",)))
    params = jax.device_put(params, whole)
    program = jax.jit(sampler, out_shardings=split)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)

    def run(start: int, cond: np.ndarray | None) -> dict[str, np.ndarray]:
        eps: Any = generation.initial_noise(seed, start, batch_size, shape)
        eps, cond = jax.device_put((eps, cond), split)
        found = program(params, eps, cond, jax.random.fold_in(key, start))
        out = {name: np.asarray(value, np.float32) for name, value in found.items()}
        return out if cond is None else {**out, "cond": np.asarray(cond)}

    return run


def _conditions(source: Source | None, start: int, count: int) -> np.ndarray | None:
    if source is None:
        return None
    return take(source, np.arange(start, start + count) % len(source))["cond"]


def _check_finite(sample: dict[str, np.ndarray], start: int) -> None:
    x0 = sample["x0"]
    bad = ~np.isfinite(x0.reshape(len(x0), -1)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the teacher's sample {start + int(bad.argmax())} is not finite; check "
            "the teacher with distilljax sample, or take more nfe or less guidance"
        )


def _bar(count: int, mine: list[Any], missing: list[Any], progress: bool | None):
    from tqdm import tqdm

    total = sum(last - first for _, first, last in mine)
    left = sum(last - first for _, first, last in missing)
    shown = sys.stderr.isatty() if progress is None else progress
    return tqdm(
        total=total,
        initial=total - left,
        desc="pairs",
        unit="sample",
        disable=not shown,
    )
