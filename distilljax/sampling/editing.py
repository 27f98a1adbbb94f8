"""Zero-shot edits: samplers told what is known of the picture, and inversion.

An edit is a `sampling.Hooks` for `sampling.sample` with its default rule `Consistency`,
any path, any number of steps and any flow map that reaches the data. It costs no
evaluation of the network and no gradient.

| edit | what is given | where it acts |
|---|---|---|
| `inpaint` | the pixels outside a hole | the clean estimate of every step |
| `colourise` | the luminance of every pixel | the clean estimate of every step |
| `super_resolve` | the means of patches | the clean estimate of every step |
| `denoise` | the picture under white noise | the start |
| `stroke` | a rough picture | the start |
| `interpolate` | a second start | the start |

The first three know some coordinates of ``A x0``, ``A`` orthogonal (`Measurement`):

    mix(y, x) = A^-1 (A y where known, A x elsewhere)
    x0 <- mix(y, clip(f(x, t, 0), -1, 1)),    x <- alpha_s x0 + sigma_s eps.

The clean estimate is mixed before noise is added, so that the known coordinates of the
state have the right law at every level, and those of the result are the given ones.

References:
  Song et al., Consistency Models, 2023, arXiv:2303.01469, Algorithm 4 and appendix D.
  Meng et al., SDEdit, 2021, arXiv:2108.01073 (stroke).
  Deng et al., FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing,
    2024, arXiv:2412.07517 (`invert`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.diffusion.fields import Field
from distilljax.diffusion.flow_maps import FlowMap
from distilljax.diffusion.paths import Path, Time, expand
from distilljax.diffusion.predictions import Prediction
from distilljax.diffusion.sampler import Hooks
from distilljax.diffusion.solvers import FireFlow, Solver, solve

Array = jax.Array
Range = tuple[float, float]

# Luma of ITU-R 601, as Song et al. 2023 round it.
LUMA = (0.2989, 0.5870, 0.1140)
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """Orthogonal coordinates of pictures, and which of them are known.

    Attributes:
      forward: ``A``, pictures ``[..., H, W, C]`` to coordinates.
      inverse: ``A^-1``, the transpose.
      known: bool, broadcasts against the coordinates.
    """

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    known: Array

    def mix(self, y: Array, x: Array) -> Array:
        """The known coordinates of ``y`` with the others of ``x``."""
        return self.inverse(jnp.where(self.known, self.forward(y), self.forward(x)))


def _completed(first: Sequence[float]) -> np.ndarray:
    """An orthogonal matrix whose first column is parallel to ``first`` (positive)."""
    matrix = np.eye(len(first))
    matrix[:, 0] = first
    q = np.linalg.qr(matrix)[0]
    return q if q[:, 0].sum() > 0.0 else -q


def _turn(x: Array, matrix: np.ndarray) -> Array:
    """``x @ matrix`` over the last axis, in full precision on every device."""
    return jnp.matmul(x, jnp.asarray(matrix, x.dtype), precision=_HIGHEST)


def pixels(mask: Array) -> Measurement:
    """Pixels outside a hole; ``A`` is the identity.

    Args:
      mask: not 0 in the hole; broadcasts against the pictures, for example
        ``[H, W, 1]`` or ``[B, H, W, 1]``.
    """
    return Measurement(lambda x: x, lambda x: x, jnp.asarray(mask) == 0)


def luminance() -> Measurement:
    """The luminance of every pixel; the first of three turned colours is known."""
    q = _completed(LUMA)
    known = jnp.array([True, False, False])
    return Measurement(lambda x: _turn(x, q), lambda x: _turn(x, q.T), known)


def patch_means(factor: int) -> Measurement:
    """The mean of every patch of ``factor x factor`` pixels, by channel.

    Args:
      factor: side of a patch, at least 2; divides height and width.
    """
    if factor < 2:
        raise ValueError(f"factor must be at least 2, got {factor}")
    q, p = _completed([1.0] * factor**2), factor

    def forward(x: Array) -> Array:
        *lead, height, width, channels = x.shape
        if height % p or width % p:
            raise ValueError(
                f"height and width must be multiples of factor {p}, got {x.shape}"
            )
        x = x.reshape(*lead, height // p, p, width // p, p, channels)
        x = jnp.moveaxis(x, (-4, -2), (-2, -1))
        return _turn(x.reshape(*x.shape[:-2], p * p), q)

    def inverse(z: Array) -> Array:
        *lead, rows, columns, channels, _ = z.shape
        x = _turn(z, q.T).reshape(*lead, rows, columns, channels, p, p)
        x = jnp.moveaxis(x, (-2, -1), (-4, -2))
        return x.reshape(*lead, rows * p, columns * p, channels)

    return Measurement(forward, inverse, jnp.arange(p * p) == 0)


def restore(
    measurement: Measurement, observed: Array, *, clip: Range | None = (-1.0, 1.0)
) -> Hooks:
    """Any edit that knows coordinates of the picture; see the module docstring.

    Args:
      measurement: the coordinates.
      observed: pictures ``[B, ...]`` with the known coordinates; the others are unused.
      clip: range of the data, to which the clean estimate is clipped before it is
        mixed; None for data without bounds.

    Returns:
      Hooks whose ``guide`` mixes what the flow map says of the data (``s = 0``).
      `Consistency` and `sampling.SDE` ask nothing else; states at ``s > 0``, where
      other rules jump, are left alone.
    """

    def guide(flow_map: FlowMap, index: Array) -> FlowMap:
        def mixed(x: Array, t: Time, s: Time) -> Array:
            moved = flow_map(x, t, s)
            clean = moved if clip is None else jnp.clip(moved, *clip)
            clean = measurement.mix(observed.astype(moved.dtype), clean)
            return jnp.where(expand(s, moved) == 0.0, clean, moved)

        return mixed

    return Hooks(guide=guide)


def inpaint(observed: Array, mask: Array, *, clip: Range | None = (-1.0, 1.0)) -> Hooks:
    """Fills a hole.

    Args:
      observed: pictures ``[B, H, W, C]``; what is in the hole is unused.
      mask: not 0 in the hole; see `pixels`.
      clip: see `restore`.
    """
    return restore(pixels(mask), observed, clip=clip)


def grey(x: Array) -> Array:
    """Luminance ``[..., 1]`` of pictures ``[..., 3]``."""
    return _turn(x, np.asarray(LUMA)[:, None])


def colourise(observed: Array, *, clip: Range | None = (-1.0, 1.0)) -> Hooks:
    """Finds colours with a given luminance.

    Args:
      observed: `grey` pictures ``[B, H, W, 1]``.
      clip: see `restore`.
    """
    if observed.shape[-1] != 1:
        raise ValueError(
            f"observed must be grey, [B, H, W, 1], got {observed.shape}; see "
            "editing.grey"
        )
    luma = jnp.asarray(LUMA, observed.dtype)
    return restore(luminance(), observed * luma / jnp.sum(luma**2), clip=clip)


def shrink(x: Array, factor: int) -> Array:
    """Means of patches: ``[..., H, W, C]`` to ``[..., H/factor, W/factor, C]``."""
    return patch_means(factor).forward(x)[..., 0] / factor


def super_resolve(
    observed: Array, factor: int, *, clip: Range | None = (-1.0, 1.0)
) -> Hooks:
    """Finds a sharp picture whose patches have given means.

    Args:
      observed: small pictures ``[B, h, w, C]``; see `shrink`.
      factor: how much larger the result is, at least 2.
      clip: see `restore`.
    """
    measurement = patch_means(factor)
    large = observed.repeat(factor, axis=-3).repeat(factor, axis=-2)
    return restore(measurement, large, clip=clip)


def level(path: Path, std: float) -> float:
    """Time at which a state is ``alpha`` times the data under noise of ``std``."""
    with jax.ensure_compile_time_eval():
        return float(path.time_of_angle(jnp.arctan(jnp.asarray(std))))


def denoise(observed: Array, t: Time, path: Path) -> Hooks:
    """Starts from a picture under white noise.

    Args:
      observed: ``x0 + std eps``, ``[B, ...]``.
      t: `level` of ``std``, the first time of the sampler.
      path: path of the sampler.

    Returns:
      Hooks whose ``start`` puts ``alpha_t observed`` in the place of the state.
    """

    def start(x: Array) -> Array:
        return path.noise(observed.astype(x.dtype), jnp.zeros_like(x), t)

    return Hooks(start=start)


def stroke(observed: Array, t: Time, path: Path) -> Hooks:
    """Starts from a rough picture under the noise of a middle time.

    Args:
      observed: pictures ``[B, ...]``.
      t: first time of the sampler; more noise is more realistic and less faithful, and
        at 0 the picture stays.
      path: path of the sampler.

    Returns:
      Hooks whose ``start`` adds ``alpha_t observed`` to ``path.start(eps, t=t)``.
    """

    def start(x: Array) -> Array:
        return path.noise(observed.astype(x.dtype), jnp.zeros_like(x), t) + x

    return Hooks(start=start)


def slerp(a: Array, b: Array, share: Time) -> Array:
    """Spherical interpolation, by sample.

    ``(sin((1 - u) w) a + sin(u w) b) / sin w`` with ``w`` the angle between ``a`` and
    ``b``; straight where they are parallel.

    Args:
      a: ``[B, ...]``, the result at 0.
      b: the result at 1, shape of ``a``.
      share: ``u``, scalar or ``[B]``.
    """
    axes = tuple(range(1, a.ndim))

    def dot(u: Array, v: Array) -> Array:
        return jnp.sum(u * v, axis=axes, keepdims=True)

    share = expand(share, a).astype(a.dtype)
    cosine = dot(a, b) / jnp.sqrt(dot(a, a) * dot(b, b))
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    sine = jnp.sin(angle)
    parallel = sine < 1e-6
    sine = jnp.where(parallel, 1.0, sine)
    to_a = jnp.where(parallel, 1.0 - share, jnp.sin((1.0 - share) * angle) / sine)
    to_b = jnp.where(parallel, share, jnp.sin(share * angle) / sine)
    return to_a * a + to_b * b


def interpolate(other: Array, share: Time) -> Hooks:
    """Starts between two noises.

    Args:
      other: second start, shape of the sampler's ``x``.
      share: 0 is the sampler's own start, 1 the other; scalar or ``[B]``.
    """
    return Hooks(start=lambda x: slerp(x, other.astype(x.dtype), share))


def invert(
    field: Field,
    x0: Array,
    times: Sequence[float],
    *,
    path: Path,
    solver: Solver = FireFlow(),
    kind: str | Prediction = "velocity",
) -> Array:
    """The noise from which the ODE of a field reaches given data.

    Args:
      field: prediction of ``kind`` on ``path``.
      x0: data ``[B, ...]``.
      times: decreasing, as for sampling; the last one 0.
      path: path of the field.
      solver: a solver without noise; `Midpoint` is more exact by step, `FireFlow` by
        evaluation.
      kind: kind of the field.

    Returns:
      ``eps`` with ``path.start(eps, t=times[0])`` the state at ``times[0]``: solving
      the same times from there reconstructs ``x0`` up to the error of the solver. Costs
      ``solver.evaluations(len(times) - 1)``.
    """
    rising = tuple(float(t) for t in times)[::-1]
    end = solve(field, x0, rising, path=path, solver=solver, kind=kind)
    t = expand(rising[-1], end)
    return end / path.sigma(t)
