"""Pairs and trajectories of a teacher, written once to train many students.

A folder of `data.pairs`, written part by part: a call that was interrupted goes on
after its last whole part, and several processes share the parts among them.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from distilljax.core.binding import Bound, Network
from distilljax.core.draws import follow
from distilljax.data import array_records, labels
from distilljax.data.pipeline import take
from distilljax.data.sources import Source
from distilljax.diffusion.solvers import Heun, Solver
from distilljax.diffusion.times import Grid, PathGrid
from distilljax.experiment import api
from distilljax.runtime import promotion, storage, terminal
from distilljax.runtime.errors import unknown
from distilljax.sampling import generation
from distilljax.training.claim import differing
from distilljax.training.digests import fingerprint

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
    grid: Grid = PathGrid(),
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


@promotion.usual()
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
    devices = jax.local_devices()
    _check_sizes(count, batch_size, len(devices))
    batch_size = min(batch_size, -(-count // len(devices)) * len(devices))
    fitted = teacher if isinstance(teacher, api.Fitted) else api.load(teacher)
    if conditions is None and fitted.num_classes is not None:
        conditions = labels(fitted.num_classes, fitted.sample_shape)
    recipe = _recipe(fitted, kind, nfe, segments, solver, guidance)
    layout = dict(recipe.layout)
    if conditions is not None:
        first = conditions[0]["cond"]
        layout["cond"] = (first.dtype.name, first.shape)
    record = array_records.packed(layout).itemsize
    part = batch_size * max(1, PART_BYTES // (record * batch_size))
    settings = {
        "teacher": fitted.method.name,
        "params": fingerprint(fitted.params),
        "path": repr(fitted.network.path),
        "kind": kind,
        "count": count,
        "nfe": nfe,
        "solver": repr(solver),
        "guidance": guidance,
        "times": recipe.times,
        "seed": seed,
        "batch_size": batch_size,
        "part": part,
        "conditions": None if conditions is None else conditions.fingerprint,
    }
    folder = _claim(epath.Path(folder), settings)
    run = _on_devices(fitted, recipe, conditions, devices, seed, batch_size)
    parts = [(i, a, min(a + part, count)) for i, a in enumerate(range(0, count, part))]
    mine = parts[jax.process_index() :: jax.process_count()]
    missing = [p for p in mine if not _record(folder, p[0]).exists()]
    with _bar(mine, missing, progress) as bar:
        for number, first, last in missing:
            rows = _rows(run, layout, range(first, last, batch_size), last, bar)
            path = folder / array_records.shard_name(number, len(parts))
            done = json.dumps([path.name, *array_records.write_shard(path, rows)])
            storage.write_atomic(_record(folder, number), done)
    records = [_record(folder, i) for i, _, _ in parts]
    # The process that finds everything there says so; two would write the same.
    if all(record.exists() for record in records):
        shards = [tuple(json.loads(record.read_text())) for record in records]
        classes = None if conditions is None else conditions.num_classes
        more: dict[str, Any] = {"origin": settings}
        if fitted.class_names is not None and classes == fitted.num_classes:
            more["class_names"] = fitted.class_names
        array_records.describe(folder, layout, classes, shards, **more)
    return folder


class _Recipe(NamedTuple):
    """How a kind is made and stored.

    Attributes:
      sampler: ``(params, eps, cond, key) -> sample``.
      layout: see `RecordSource`, without conditions.
      times: of the states of a trajectory.
    """

    sampler: Callable[..., dict[str, Array]]
    layout: dict[str, tuple[str, tuple[int, ...]]]
    times: tuple[float, ...] | None


def _check_sizes(count: int, batch_size: int, devices: int) -> None:
    for name, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if batch_size % devices:
        raise ValueError(
            f"batch_size must be a multiple of the {devices} devices, got {batch_size}"
        )


def _recipe(
    fitted: api.Fitted,
    kind: str,
    nfe: int,
    segments: int,
    solver: Solver,
    guidance: float,
) -> _Recipe:
    how: dict[str, Any] = {"solver": solver, "guidance": guidance}
    shape, network = fitted.sample_shape, fitted.network
    if kind == "pairs":
        sampler = generation.teacher_sampler(network, nfe, **how)
        layout = {name: ("float32", shape) for name in ("x0", "eps")}
        return _Recipe(functools.partial(_with_noise, sampler), layout, None)
    if kind != "trajectory":
        raise ValueError(unknown("kind", kind, KINDS))
    sampler, times = trajectory_sampler(network, nfe, segments, **how)
    layout = {
        "x0": ("float32", shape),
        "states": ("float32", (segments, *shape)),
        "times": ("float32", (segments,)),
    }
    return _Recipe(sampler, layout, times)


def _rows(
    run: Callable[[int], dict[str, np.ndarray]],
    layout: dict[str, Any],
    starts: range,
    last: int,
    bar: Any,
) -> Iterator[np.ndarray]:
    """Records of the samples before ``last``, a batch at a time."""
    for start in starts:
        n = min(starts.step, last - start)
        sample = run(start)
        _check_finite(sample["x0"][:n], start)
        yield array_records.pack(sample, layout)[:n]
        bar.update(n)


def _with_noise(sampler: Any, params: Any, eps: Array, cond: Any, key: Array):
    return {"x0": sampler(params, eps, cond, key), "eps": eps}


def _record(folder: epath.Path, number: int) -> epath.Path:
    """The file that says that a part is whole."""
    return folder / "parts" / f"{number:05d}.json"


def _claim(folder: epath.Path, settings: dict[str, Any]) -> epath.Path:
    """Makes the folder these settings', or refuses."""
    path = folder / "pairs.json"
    settings = json.loads(json.dumps(settings))
    names = {p.name for p in folder.iterdir()} if folder.exists() else set()
    # Another process may be about to write the same; its draft has a hidden name.
    there = {name for name in names if not name.startswith(".")}
    if path.name in there:
        changed = differing(json.loads(path.read_text()), settings)
        if changed:
            raise ValueError(
                f"{folder} holds pairs of other settings, which are left as they are. "
                f"Different (there -> now): {'; '.join(changed)}. Choose another "
                "folder, or the old settings to continue."
            )
    elif there:
        raise ValueError(f"{folder} holds something else; choose an empty folder")
    else:
        storage.write_atomic(path, json.dumps(settings, indent=1) + "\n")
    return folder


def _on_devices(
    fitted: api.Fitted,
    recipe: _Recipe,
    conditions: Source | None,
    devices: list[Any],
    seed: int,
    batch_size: int,
) -> Callable[[int], dict[str, np.ndarray]]:
    """``start -> sample`` of a batch that is split over the devices."""
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )
    whole, split = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("data",)))
    params = jax.device_put(fitted.params, whole)
    program = jax.jit(recipe.sampler, out_shardings=split)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)

    def run(start: int) -> dict[str, np.ndarray]:
        cond: Any = None
        if conditions is not None:
            indices = np.arange(start, start + batch_size) % len(conditions)
            cond = take(conditions, indices)["cond"]
        eps: Any = generation.initial_noise(
            seed, start, batch_size, fitted.sample_shape
        )
        given = jax.device_put((eps, cond), split)
        found = program(params, *given, jax.random.fold_in(key, start))
        out = {name: np.asarray(value, np.float32) for name, value in found.items()}
        if recipe.times is not None:
            times = np.asarray(recipe.times, np.float32)
            out["times"] = np.broadcast_to(times, (batch_size, len(times)))
        return out if cond is None else {**out, "cond": cond}

    return run


def _check_finite(x0: np.ndarray, start: int) -> None:
    bad = ~np.isfinite(x0.reshape(len(x0), -1)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the teacher's sample {start + int(bad.argmax())} is not finite; check "
            "the teacher with distilljax sample, or take more nfe or less guidance"
        )


def _bar(mine: list[Any], missing: list[Any], progress: bool | None):
    total = sum(last - first for _, first, last in mine)
    left = sum(last - first for _, first, last in missing)
    shown = terminal.is_terminal() if progress is None else progress
    return terminal.bar(
        total=total,
        initial=total - left,
        desc="pairs",
        unit="sample",
        disable=not shown,
    )
