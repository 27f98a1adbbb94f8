"""Few-step sampling: iterate a flow map over a time list with a re-noising rule.

One step is the first case: the list ``(T, 0)``. The sampler scans over a static list of
steps, one program without host round trips.

| rule | step from t to s |
|---|---|
| `Deterministic()` | ``f(x, t, s)`` |
| `Consistency()` | ``x0 = f(x, t, 0)``, then noise ``x0`` to ``s`` with fresh noise |
| `HopFirst()` | the first rule from pure noise, then the second |
| `Gamma(g)` | ``f`` to a level below ``s``, then noise back up to ``s``; 0: the first rule, 1: the second |
| `SDE(eta)` | step along ``x0 = f(x, t, 0)`` with a share of fresh noise; 0: DDIM |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from distilljax.diffusion.flow_maps import FlowMap
from distilljax.diffusion.paths import Path, expand
from distilljax.diffusion.solvers import ancestral_std, fresh_noise
from distilljax.diffusion.times import check_times
from distilljax.runtime import words

Array = jax.Array


class Renoise(Protocol):
    """``(flow_map, path, x, t, s, eps) -> x_s``; a frozen dataclass."""

    def __call__(
        self, flow_map: FlowMap, path: Path, x: Array, t: Array, s: Array, eps: Array
    ) -> Array: ...


@words.call
@dataclasses.dataclass(frozen=True)
class Deterministic:
    """Chain of jumps, no fresh noise (MeanFlow, shortcut, CTM with gamma 0)."""

    noisy = False

    def __call__(
        self, flow_map: FlowMap, path: Path, x: Array, t: Array, s: Array, eps: Array
    ) -> Array:
        return flow_map(x, t, s)


@words.call
@dataclasses.dataclass(frozen=True)
class Consistency:
    """Jump to the data, then re-noise (Song et al. 2023, Algorithm 1; DMD2).

    A map with a boundary ends there, so that as much less noise is added:
    ``sqrt(s^2 - boundary^2)`` on EDM.
    """

    noisy = True

    def __call__(
        self, flow_map: FlowMap, path: Path, x: Array, t: Array, s: Array, eps: Array
    ) -> Array:
        clean = flow_map(x, t, jnp.zeros_like(s))
        boundary = getattr(flow_map, "boundary", 0.0)
        if boundary:
            return path.renoise_from(clean, boundary, s, eps)[0]
        return path.noise(clean, eps, s)


@words.call
@dataclasses.dataclass(frozen=True)
class HopFirst:
    """From pure noise one jump to ``s``; every later step as `Consistency`.

    The jump adds no fresh noise, so that a few-step sampler makes one long jump less
    (Dong et al., Dual-End Consistency Model, 2026, arXiv:2602.10764). It needs a map
    that was trained from noise to every ``s``.
    """

    noisy = True

    def __call__(
        self, flow_map: FlowMap, path: Path, x: Array, t: Array, s: Array, eps: Array
    ) -> Array:
        hop = jnp.asarray(t) >= path.t_max * (1.0 - 1e-6)
        moved = flow_map(x, t, jnp.where(hop, s, 0.0))
        return jnp.where(expand(hop, x), moved, path.noise(moved, eps, s))


@words.call
@dataclasses.dataclass(frozen=True)
class Gamma:
    """Gamma sampling of consistency trajectory models (Kim et al. 2023, Algorithm 3).

    Jumps to the level at which ``sigma/alpha`` is ``b + sqrt(1 - gamma^2) (r - b)``,
    ``r`` that of ``s`` and ``b`` that of the path's boundary (0.002 on EDM, as in the
    release, 0 elsewhere), and adds noise back up to ``s``.

    Attributes:
      gamma: in ``[0, 1]``.
    """

    gamma: float = 0.5
    noisy = True

    def __post_init__(self):
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must lie in [0, 1], got {self.gamma}")

    def __call__(
        self, flow_map: FlowMap, path: Path, x: Array, t: Array, s: Array, eps: Array
    ) -> Array:
        if self.gamma == 0.0:
            return flow_map(x, t, s)
        kept = (1.0 - self.gamma**2) ** 0.5
        angle = path.angle(s)
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        least = path.boundary * cosine
        sine = jnp.where(sine > least, least + kept * (sine - least), sine)
        below = path.time_of_angle(jnp.arctan2(sine, cosine))
        return path.renoise_from(flow_map(x, t, below), below, s, eps)[0]


@words.call
@dataclasses.dataclass(frozen=True)
class SDE:
    """Ancestral step along the predicted clean sample.

    ``zeta^2 = eta^2 sigma_s^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)``; 1 is the
    DDPM posterior of a fixed ``x0``, 0 is DDIM (Song et al. 2020, eq. 16).

    Attributes:
      eta: share of fresh noise, in ``[0, 1]``.
    """

    eta: float = 1.0
    noisy = True

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")

    def __call__(
        self, flow_map: FlowMap, path: Path, x: Array, t: Array, s: Array, eps: Array
    ) -> Array:
        denoised = flow_map(x, t, jnp.zeros_like(s))
        zeta = self.eta * ancestral_std(path, t, s)
        return path.step(x, denoised, t, s, zeta=zeta, xi=eps)


class Hooks(NamedTuple):
    """Changes to a sampling run; each is pure.

    Attributes:
      start: ``x -> x`` on the initial state (stroke, inpainting seed, warm start).
      project: ``(x, s, index, carry) -> (x, carry)`` after every step (data
        consistency, tiling); ``carry`` starts as ``carry`` below.
      guide: ``(flow_map, index) -> flow_map`` before every step; what it returns is
        re-noised, so that it is the place to mend a clean estimate (`editing.restore`).
      carry: initial chain carry of ``project``, a pytree.
    """

    start: Callable[[Array], Array] | None = None
    project: Callable[[Array, Array, Array, Any], tuple[Array, Any]] | None = None
    guide: Callable[[FlowMap, Array], FlowMap] | None = None
    carry: Any = None


def sample_counted(
    flow_map: FlowMap,
    x: Array,
    times: Array,
    steps: Array,
    *,
    path: Path,
    renoise: Renoise,
    key: Array,
) -> Array:
    """`sample` with the number of steps as data, one program for all numbers.

    The program holds one network and not one a step, so that it compiles faster; the
    values are those of `sample` to rounding.

    Args:
      flow_map: the student.
      x: state at ``times[0]``, ``[B, ...]``.
      times: at least ``steps + 1`` decreasing times; later ones are not read.
      steps: number of steps, an integer scalar.
      path: path of the states.
      renoise: rule of a step.
      key: see `sample`. At a step that ends on the data the noise has weight 0.

    Returns:
      The final state in at least float32.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    times = jnp.asarray(times, x.dtype)
    noisy = getattr(renoise, "noisy", True)

    def one(index: Array, x: Array) -> Array:
        eps = fresh_noise(key, index, x) if noisy else jnp.zeros_like(x)
        moved = renoise(flow_map, path, x, times[index], times[index + 1], eps)
        return moved.astype(x.dtype)

    return jax.lax.fori_loop(0, steps, one, x)


def sample(
    flow_map: FlowMap | Sequence[FlowMap],
    x: Array,
    times: Sequence[float],
    *,
    path: Path | None = None,
    renoise: Renoise = Consistency(),
    key: Array | None = None,
    hooks: Hooks = Hooks(),
    trajectory: bool = False,
) -> Array | tuple[Array, Array]:
    """Generates by iterating a flow map over decreasing times.

    Args:
      flow_map: the student, or one map per step (teacher-first-step, experts).
      x: state at ``times[0]``, ``[B, ...]``, usually ``path.start(eps)``.
      times: ``steps + 1`` decreasing times, the last one the end (0 is data).
      path: path of the states; default the flow map's.
      renoise: rule of a step.
      key: randomness of the re-noising, one key or one per sample ``[B]``, see
        `solvers.fresh_noise`; needed by rules with fresh noise unless the only step
        ends on the data.
      hooks: see `Hooks`.
      trajectory: also return the states after every step.

    Returns:
      The final state in at least float32, or ``(state, states [steps, B, ...])``.

    Raises:
      ValueError: on times that do not decrease or lie outside the path's clock, 0
        steps, a missing key or path, or a list of maps of the wrong length.
    """
    times = check_times(tuple(times))
    steps = len(times) - 1
    maps = (flow_map,) if callable(flow_map) else tuple(flow_map)
    if not callable(flow_map) and len(maps) != steps:
        raise ValueError(f"one flow map per step: {steps} steps, got {len(maps)} maps")
    first = maps[0]
    path = getattr(first, "path", None) if path is None else path
    if path is None:
        raise ValueError("path must be given: the flow map does not say its own")
    if times[0] > path.t_max * (1.0 + 1e-6):
        raise ValueError(
            f"times must lie in [0, {path.t_max:g}], the path's clock, got {times}"
        )
    # A step that ends on the data adds no noise, so none is drawn for it.
    noisy = getattr(renoise, "noisy", True)
    fresh = (steps if times[-1] > 0.0 else steps - 1) if noisy else 0
    if key is None and fresh:
        raise ValueError(
            f"{type(renoise).__name__} draws fresh noise at {fresh} of {steps} steps: "
            "pass key="
        )
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if hooks.start is not None:
        x = hooks.start(x)

    def one(carry, inputs, fresh):
        x, chain = carry
        index, t, s = inputs

        def advance(f: FlowMap) -> Array:
            f = f if hooks.guide is None else hooks.guide(f, index)
            eps = jnp.zeros_like(x)
            if fresh and key is not None:
                eps = fresh_noise(key, index, x)
            return renoise(f, path, x, t, s, eps)

        if len(maps) == 1:
            moved = advance(first)
        else:
            branches = [lambda f=f: advance(f) for f in maps]
            moved = jax.lax.switch(index, branches)
        x = moved.astype(x.dtype)
        if hooks.project is not None:
            x, chain = hooks.project(x, s, index, chain)
        return (x, chain), (x if trajectory else None)

    t = jnp.asarray(times, x.dtype)
    carry, visited = (x, hooks.carry), []
    for begin, end in ((0, fresh), (fresh, steps)):
        if begin == end:
            continue
        carry, states = jax.lax.scan(
            functools.partial(one, fresh=end == fresh),
            carry,
            (jnp.arange(begin, end), t[begin:end], t[begin + 1 : end + 1]),
            unroll=end - begin if steps <= 8 else 1,
        )
        visited.append(states)
    if not trajectory:
        return carry[0]
    return carry[0], jnp.concatenate(visited)
