"""Batch generation: samplers of methods and teachers, with progress, resumable.

The noise of sample ``i``, that of its re-noising included, depends on the seed and
``i`` alone: samples are the same whatever the batch size, and two samplers with one
seed start from the same noise.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distilljax.core.binding import Bound, Network, told
from distilljax.core.method import Method
from distilljax.diffusion.flow_maps import FlowMap
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import sample as sample_steps
from distilljax.diffusion.sampler import sample_counted
from distilljax.diffusion.solvers import FireFlow, Heun, Solver, folded, solve
from distilljax.diffusion.times import Grid, PathGrid
from distilljax.runtime import promotion, storage, terminal
from distilljax.runtime.errors import check_whole
from distilljax.sampling import editing
from distilljax.training.lock import Lock

Array = jax.Array
Sampler = Callable[[Any, Array, Any, Array], Array]

# Bytes of the checksum behind a finished batch.
_DIGEST = 16


class Lead(NamedTuple):
    """A teacher that takes a student's first steps.

    It settles what the picture shows, and with it the diversity of the samples; the
    student does the rest.

    Attributes:
      network: teacher network.
      steps: steps of the student's grid that it takes in the student's place.
      nfe: its evaluations for them without guidance, a multiple of what a step of the
        solver needs; its steps are equal in the noise angle.
      solver: see `distilljax.solvers`.
      guidance: scale ``w``; doubles the evaluations when not 1.

    References:
      Gandikota and Bau, Distilling Diversity and Control in Diffusion Models, 2025,
        arXiv:2503.10637.
    """

    network: Network
    steps: int = 1
    nfe: int = 2
    solver: Solver = Heun()
    guidance: float = 1.0

    @property
    def evaluations(self) -> int:
        """Evaluations of a sample, guidance included."""
        return self.nfe * (1 if self.guidance == 1 else 2)


def own_path(network: Network) -> Path:
    """Path on which a network predicts.

    Raises:
      ValueError: if it does not say one.
    """
    if network.path is None:
        raise ValueError(f"network {network.name!r} does not say its path")
    return network.path


def sampling_path(method: Method, network: Network) -> Path:
    """Path on which a method's student is sampled.

    Raises:
      ValueError: if neither the method nor the network says one.
    """
    path = method.sampling.path
    return own_path(network) if path is None else path


def student_map(method: Method, network: Network, params: Any, cond: Any) -> FlowMap:
    """The student of a method as the flow map that its sampler iterates."""
    how, path = method.sampling, sampling_path(method, network)
    net = Bound(how.role, network, params)
    if how.view is not None:
        return how.view(net, cond, path)
    return net.flow_map(cond, path=path, two_time=how.two_time, boundary=how.boundary)


@promotion.usual()
def student_sampler(
    method: Method,
    network: Network,
    steps: int,
    *,
    grid: Grid | None = None,
    lead: Lead | None = None,
    guidance: float | None = None,
) -> Sampler:
    """The sampler of a method's student.

    Args:
      method: says grid, re-noising rule and path.
      network: network of the sampled role.
      steps: number of steps; each that the student takes is one evaluation.
      grid: another time grid than the method's.
      lead: a teacher that takes the first of the steps.
      guidance: scale that the student is told; default the method's.

    Returns:
      ``(params, eps, cond, key) -> x``, one program; ``key`` is one key or one per
      sample. With a lead ``params`` is the pair of the student's and the teacher's.

    Raises:
      ValueError: if the network does not say its path, on a lead that leaves the
        student no step or cannot spend its evaluations, or on a scale for a student
        that was not trained for several.
    """
    path = sampling_path(method, network)
    scale = method.sampling.guidance
    if guidance is not None and scale is None:
        raise ValueError(
            f"the student of {method.name!r} is told no guidance scale, got guidance="
            f"{guidance}: leave it out, or train with embed=True and several scales"
        )
    scale = scale if guidance is None else guidance
    times = (method.sampling.grid if grid is None else grid)(steps, path)
    led = None if lead is None else _lead_times(lead, times, path)

    def run(params: Any, eps: Array, cond: Any, key: Array) -> Array:
        x, left = path.start(eps, t=times[0]), times
        if lead is not None and led is not None:
            params, of_teacher = params
            teacher = Bound("teacher", lead.network, of_teacher)
            own, key = (folded(key, i) for i in (0, 1))
            x = _followed(teacher, x, led, cond, own, path, lead.solver, lead.guidance)
            left = times[lead.steps :]
        if scale is not None:
            cond = told(cond, jnp.full(eps.shape[:1], scale, jnp.float32))
        f = student_map(method, network, params, cond)
        rule = method.sampling.renoise
        x = sample_steps(f, x, left, path=path, renoise=rule, key=key)
        assert isinstance(x, jax.Array)
        return x

    return run


@promotion.usual()
def counted_sampler(
    method: Method, network: Network, counts: Sequence[int]
) -> Callable[..., Array]:
    """One program for several numbers of steps of a student; see `student_sampler`.

    Args:
      method: says grid, re-noising rule and path; a student that is told no scale.
      network: network of the sampled role.
      counts: the numbers of steps.

    Returns:
      ``((params, place), eps, cond, key) -> x`` takes ``counts[place]`` steps; the
      place is an integer array, so that no number of steps compiles anew.
    """
    path = sampling_path(method, network)
    grids = [method.sampling.grid(count, path) for count in counts]
    width = max(map(len, grids))
    table = np.asarray([(*g, *[g[-1]] * (width - len(g))) for g in grids], np.float32)
    steps = np.asarray([len(g) - 1 for g in grids], np.int32)

    def run(given: Any, eps: Array, cond: Any, key: Array) -> Array:
        params, place = given
        times = jnp.asarray(table)[place]
        f = student_map(method, network, params, cond)
        return sample_counted(
            f,
            path.start(eps, t=times[0]),
            times,
            jnp.asarray(steps)[place],
            path=path,
            renoise=method.sampling.renoise,
            key=key,
        )

    return run


def steps_of(solver: Solver, nfe: int) -> int:
    """Steps of a solver that take a number of network evaluations.

    Raises:
      ValueError: if no number of steps takes just as many.
    """
    steps = next((n for n in range(1, nfe + 1) if solver.evaluations(n) == nfe), 0)
    if not steps:
        raise ValueError(
            f"nfe {nfe} cannot be spent by {type(solver).__name__}: "
            f"{solver.evaluations(1)} evaluations make one step"
        )
    return steps


def _lead_times(lead: Lead, times: tuple[float, ...], path: Path) -> tuple[float, ...]:
    """The times of the teacher's own steps, from the first to where it hands over."""
    steps = len(times) - 1
    if not 1 <= lead.steps < steps:
        raise ValueError(
            f"the teacher must take at least one step and leave the student one: of "
            f"{steps} steps it was given {lead.steps}; change steps or the teacher's"
        )
    n, begin, end = steps_of(lead.solver, lead.nfe), times[0], times[lead.steps]
    with jax.ensure_compile_time_eval():
        top, bottom = path.angle(jnp.asarray([begin, end]))
        inner = path.time_of_angle(jnp.linspace(top, bottom, n + 1))[1:-1]
        return (begin, *map(float, inner), end)


def _followed(
    teacher: Bound,
    x: Array,
    times: Sequence[float],
    cond: Any,
    key: Array,
    path: Path,
    solver: Solver,
    guidance: float,
) -> Array:
    """``x`` carried through the times by a guided teacher's ODE."""
    # In the network's own kind: the solver knows what each leaves open at an end.
    field = teacher.guided({"cond": cond}, guidance, kind=teacher.kind, path=path)
    return solve(field, x, times, path=path, solver=solver, kind=teacher.kind, key=key)


@promotion.usual()
def teacher_sampler(
    network: Network,
    nfe: int = 50,
    *,
    solver: Solver = Heun(),
    guidance: float = 1.0,
    grid: Grid = PathGrid(solved=True),
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
    path = own_path(network)
    times = grid(steps_of(solver, nfe), path)

    def run(params: Any, eps: Array, cond: Any, key: Array) -> Array:
        teacher = Bound("teacher", network, params)
        x = path.start(eps)
        return _followed(teacher, x, times, cond, key, path, solver, guidance)

    return run


def teacher_inverter(
    network: Network,
    nfe: int = 9,
    *,
    solver: Solver = FireFlow(),
    guidance: float = 1.0,
    grid: Grid = PathGrid(solved=True),
) -> Sampler:
    """The way back of `teacher_sampler`; see `editing.invert`.

    Args:
      network: teacher network.
      nfe: evaluations per sample without guidance, those that the solver's steps need.
      solver: see `distilljax.solvers`.
      guidance: scale ``w``; 1 reconstructs best.
      grid: time grid of the way there.

    Returns:
      ``(params, x0, cond, key) -> eps``, one program.
    """
    path = own_path(network)
    times = grid(steps_of(solver, nfe), path)

    def run(params: Any, x0: Array, cond: Any, key: Array) -> Array:
        teacher = Bound("teacher", network, params)
        field = teacher.guided({"cond": cond}, guidance, kind=teacher.kind)
        kind = teacher.kind
        return editing.invert(field, x0, times, path=path, solver=solver, kind=kind)

    return run


def initial_noise(
    seed: int, start: int, count: int, sample_shape: tuple[int, ...]
) -> Array:
    """Noise of samples ``start .. start + count - 1``; a function of seed and index.

    Raises:
      ValueError: on a seed that the generator does not tell from another.
    """
    indices = np.arange(start, start + count, dtype=np.uint32)
    return _noise(checked_seed(seed), indices, tuple(sample_shape))


@functools.partial(jax.jit, static_argnums=2)
def _noise(seed: int, indices: Array, sample_shape: tuple[int, ...]) -> Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return jax.vmap(lambda key: jax.random.normal(key, sample_shape))(keys)


@jax.jit
def sample_keys(seed: int, indices: Array) -> Array:
    """Keys of the fresh noise of samples, apart from those of their first noise."""
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def checked_seed(seed: int) -> np.uint32:
    """A seed of 32 bits.

    Raises:
      ValueError: beyond them, where bits would be lost and seeds be equal.
    """
    if not 0 <= check_whole("seed", seed) < 2**32:
        raise ValueError(f"seed must lie in 0 .. {2**32 - 1}, got {seed}")
    return np.uint32(seed)


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


@promotion.usual()
def generate(
    sampler: Callable[..., Array],
    params: Any,
    *,
    sample_shape: tuple[int, ...],
    count: int | None = None,
    labels: Any = None,
    cond: Any = None,
    start: Any = None,
    given: Any = None,
    seed: int = 0,
    batch_size: int = 512,
    num_classes: int | None = None,
    resume: str | os.PathLike | None = None,
    tag: str = "",
    save: Callable[[np.ndarray], None] | None = None,
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
      given: pytree of further arrays ``[count, ...]`` (pictures to edit); their batches
        are a fifth argument of the sampler.
      seed: of noise and re-noising.
      batch_size: samples per program call; the last batch is padded.
      num_classes: range of the labels, checked.
      resume: folder for finished batches; an interrupted call with the same arguments
        and parameters continues there, and the folder is removed at the end.
      tag: what was sampled; a folder of another tag, seed, batch size, or of other
        parameters or inputs is refused, and so is one that another call is using.
      save: writes the samples. It is called before the folder of finished batches is
        let go: a full disk loses none of them, and no second call writes meanwhile.
      progress: shows a bar; default on a terminal.

    Returns:
      Samples ``[count, *sample_shape]``, float32.

    Raises:
      ValueError: on arguments that do not fit each other or the folder.
      FloatingPointError: on samples that are not finite.
    """
    if labels is not None:
        if cond is not None:
            raise ValueError("pass labels or cond, got both")
        cond = check_labels(labels, num_classes)
    inputs = jax.tree.map(np.asarray, (cond, start, given))
    named = {"cond" if labels is None else "labels": cond, "start": start}
    named["given arrays"] = given
    count = _common_length(named, count)
    if start is not None and np.shape(start)[1:] != tuple(sample_shape):
        raise ValueError(
            f"start must be [count, {', '.join(map(str, sample_shape))}], got "
            f"{np.shape(start)}"
        )
    if not count or check_whole("count", count) < 1:
        raise ValueError(f"count must be at least 1 (or labels given), got {count}")
    if check_whole("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    batch_size, number = min(batch_size, count), checked_seed(seed)
    store = _Store(resume, tag, seed, batch_size, count, (params, inputs))
    run = sampler if hasattr(sampler, "lower") else jax.jit(sampler)
    starts = range(0, count, batch_size)
    shown = terminal.is_terminal() if progress is None else progress
    if shown:
        starts = terminal.bar(starts, desc=tag or "sampling", unit="batch")
    out = np.empty((count, *sample_shape), np.float32)
    try:
        for first in starts:
            rows = slice(first, min(first + batch_size, count))
            found = store.load(first)
            if found is None:
                part, eps, more = _batch(inputs, rows, batch_size)
                indices = np.arange(first, first + batch_size, dtype=np.uint32)
                if eps is None:
                    eps = _noise(number, indices, tuple(sample_shape))
                keys = sample_keys(number, indices)
                arrays = () if more is None else (more,)
                found = np.asarray(run(params, eps, part, keys, *arrays))
                found = found[: rows.stop - rows.start]
                _check_finite(found, first)
                store.save(first, found)
            out[rows] = found
        if save is not None:
            save(out)
        store.clear()
    finally:
        store.close()
    return out


def _check_finite(samples: np.ndarray, first: int) -> None:
    bad = np.flatnonzero(~np.isfinite(samples.reshape(len(samples), -1)).all(1))
    if len(bad):
        raise FloatingPointError(
            f"{len(bad)} of {len(samples)} samples are NaN or infinite, the first is "
            f"sample {first + bad[0]}; look at the parameters (a run that diverged?), "
            "at the conditions, and at times and guidance of the sampler"
        )


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
        self.folder = None if folder is None else epath.Path(folder)
        if self.folder is None:
            return
        self._lock = Lock(self.folder)
        digest = hashlib.blake2b(digest_size=16)
        for path, leaf in jax.tree_util.tree_flatten_with_path(inputs)[0]:
            array = np.asarray(leaf)
            about = (jax.tree_util.keystr(path), str(array.dtype), array.shape)
            digest.update(repr(about).encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        meta = {
            "tag": tag,
            "seed": int(seed),
            "batch_size": batch_size,
            "count": count,
            "parameters and inputs": digest.hexdigest(),
        }
        try:
            self._claim(meta)
        except BaseException:
            self.close()
            raise

    def _claim(self, meta: Mapping[str, Any]) -> None:
        """Writes what the folder is of, and refuses one that is of something else."""
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "meta.json"
        if path.exists():
            try:
                had = dict(json.loads(path.read_bytes()))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}), so that nobody knows what the "
                    f"batches in {self.folder} are of; remove that folder"
                ) from error
            if had != meta:
                other = sorted(k for k in meta if had.get(k) != meta[k])
                raise ValueError(
                    f"resume folder {self.folder} holds batches of another call: "
                    f"{', '.join(other)} differ (it has {had}, asked for {meta}); "
                    "remove it or choose another folder"
                )
        storage.write_atomic(path, json.dumps(meta))

    def _path(self, start: int) -> epath.Path:
        assert self.folder is not None
        return self.folder / f"batch_{start:08d}.npy"

    def load(self, start: int) -> np.ndarray | None:
        """The batch, None where it is not there or not as it was written."""
        if self.folder is None or not self._path(start).exists():
            return None
        raw = self._path(start).read_bytes()
        content, digest = raw[:-_DIGEST], raw[-_DIGEST:]
        if hashlib.blake2b(content, digest_size=_DIGEST).digest() != digest:
            warnings.warn(
                f"{self._path(start)} is damaged; its samples are made again",
                stacklevel=3,
            )
            return None
        return np.load(io.BytesIO(content))

    def save(self, start: int, x: np.ndarray) -> None:
        if self.folder is None:
            return
        content = io.BytesIO()
        np.save(content, x)
        raw = content.getvalue()
        digest = hashlib.blake2b(raw, digest_size=_DIGEST).digest()
        storage.write_atomic(self._path(start), raw + digest)

    def clear(self) -> None:
        """Removes the batches, and the folder if nothing of others is in it."""
        if self.folder is None:
            return
        if not storage.is_local(self.folder):
            self.folder.rmtree()
            return
        for path in (*self.folder.glob("batch_*.npy"), self.folder / "meta.json"):
            path.unlink(missing_ok=True)
        self._lock.remove()

    def close(self) -> None:
        if self.folder is not None:
            self._lock.close()
