"""Corrections that compare flow maps along trajectories.

Three identities of the exact flow map ``f`` of a velocity ``v`` give every one of them:
the Eulerian ``d/dt f(x_t, t, s) = 0`` along ``v``, the Lagrangian
``d/ds f(x, t, s) = v(f, s)`` and the semigroup ``f_{m->s}(f_{t->m}) = f_{t->s}``.
Derivative losses act on the network output ``F`` of ``f = a x + b F``. Since ``b < 0``
the direction on ``F`` is *plus* the scaled total derivative (on ``f`` itself it would
be minus).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax.diffusion.flow_maps import AffineFlowMap, FlowMap
from distilljax.diffusion.paths import Time, expand
from distilljax.diffusion.predictions import VELOCITY, convert
from distilljax.losses.corrections import Correction, correct, toward
from distilljax.runtime import words

Array = jax.Array
sg = jax.lax.stop_gradient
# Name of a derivative in profiles; the output that comes with it is inside.
TANGENT = "tangent"
Derivative = Callable[[Callable, tuple, tuple], tuple[Array, Array]]


@words.value
def exact(fn: Callable, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Output and derivative by one `jax.jvp`: the primal is not computed again."""
    return jax.jvp(fn, primals, tangents)


@words.call
def finite_difference(step: float = 1e-3) -> Derivative:
    """Central difference in place of the jvp, for networks without forward mode.

    Two further evaluations; error ``O(step^2)``, and in bf16 mostly noise.

    Args:
      step: size of the step in units of the tangents.

    Returns:
      A function to pass as ``derivative``.
    """

    def derivative(fn: Callable, primals: tuple, tangents: tuple):
        def at(h: float) -> Array:
            moved = jax.tree.map(lambda p, d: sg(p + h * d), primals, tangents)
            return sg(fn(*moved))

        return fn(*primals), (at(step) - at(-step)) / (2.0 * step)

    return derivative


def _times(x: Array, *times: Time) -> tuple[Array, ...]:
    """Times of one shape [B] or more, aligned from the left, so that tangents fit."""
    arrays = [jnp.asarray(t, jnp.promote_types(x.dtype, jnp.float32)) for t in times]
    ndim = max(1, *(a.ndim for a in arrays))
    arrays = [a.reshape(a.shape + (1,) * (ndim - a.ndim)) for a in arrays]
    batch = x.shape[:1] + (1,) * (ndim - 1)
    shape = jnp.broadcast_shapes(batch, *(a.shape for a in arrays))
    return tuple(jnp.broadcast_to(a, shape) for a in arrays)


def eulerian(
    flow_map: AffineFlowMap,
    v: Array,
    x_t: Array,
    t: Time,
    s: Time = 0.0,
    *,
    warmup: Array | float = 1.0,
    state_only: bool = False,
    derivative: Derivative = exact,
) -> Correction:
    """Continuous consistency: ``df/dt`` along ``v`` vanishes at the exact map.

    With ``f = a x + b F`` and ``F_v`` the output whose velocity is ``v`` (``v`` itself
    for a velocity output),

        df/dt = (-b')(F_v - F) + warmup [ a' x + b' F_v + a v + b dF/dt ],

    primes for the partial derivative in ``t``, and the direction on ``F`` is
    ``+ tangent_scale * df/dt``. On the linear path it is ``v + (s - t) dF/dt - F``
    (MeanFlow, eq. 6; AYF-EMD); on TrigFlow with ``s = 0`` it is
    ``-cos^2 t (F - v) - warmup (cos t sin t x_t + cos t sin t dF/dt)`` (sCM, eq. 8 in
    network-output space). ``warmup = 0`` is flow matching toward ``v``.

    Args:
      flow_map: student; its output is evaluated once, with one jvp.
      v: velocity of the trajectory at ``(x_t, t)``, ``[B, ...]``: of the data, a
        teacher (guided), or predicted. Constant.
      x_t: state, shape of ``v``.
      t: time, scalar, ``[B]`` or more leading axes.
      s: end time of the map, at most ``t``; 0 is a consistency function.
      warmup: ratio ``r`` in [0, 1] that scales the part of the tangent beyond flow
        matching.
      state_only: False scales all of that part (the paper's sCM, FastGen, Sana). True
        scales the explicit derivative alone and leaves ``b dF/dt`` whole, while the
        factor ``A = -tangent_scale b'`` of ``F_v - F`` becomes ``sqrt(A (1 - r^2 +
        r^2 A))``: on TrigFlow the direction of rCM's released code,
        ``-cos t sqrt(1 - r^2 sin^2 t) (F - v) - r cos t sin t x_t - cos t sin t
        dF/dt``. Both are one at ``warmup = 1``.
      derivative: `exact` or `finite_difference(step)`.

    Returns:
      A correction of the network output; weight ones over the axes of ``t``.

    Gradient flow: through the primal ``F`` only; the tangent, ``v`` and ``x_t`` are
    constants.

    Numerics: the tangents enter the network premultiplied by ``tangent_scale * b``, so
    that they vanish as ``s -> t`` and stay bounded at the noise end.

    References:
      Lu and Song, sCM, 2024, arXiv:2410.11081.
      Geng et al., Mean Flows for One-step Generative Modeling, 2025, arXiv:2505.13447.
      Sabour et al., Align Your Flow, 2025, arXiv:2506.14603.
    """
    x_t, v = sg(x_t), sg(v)
    t, s = _times(x_t, t, s)
    te, se = expand(t, x_t), expand(s, x_t)
    (a, b), (da, db) = jax.jvp(
        lambda u: flow_map.coefficients(u, se), (te,), (jnp.ones_like(te),)
    )
    scale = flow_map.tangent_scale(te, se)
    factor = scale * b
    with jax.named_scope(TANGENT):
        output, carried = derivative(
            lambda x, u: flow_map.output(x, u, s),
            (x_t, t),
            ((factor * v).astype(x_t.dtype), factor.reshape(t.shape)),
        )
    carried = sg(carried)
    wanted = convert(flow_map.path, v, x_t, t, VELOCITY, flow_map.kind)
    ratio, pull = expand(warmup, x_t), -scale * db
    explicit = scale * (da * x_t + db * wanted + a * v)
    if state_only:
        spread = pull * (1.0 - ratio**2 * (1.0 - pull))
        pull = jnp.sqrt(jnp.maximum(spread, 0.0))
        rest = ratio * explicit + carried
    else:
        rest = ratio * (explicit + carried)
    direction = pull * (wanted - sg(output)) + rest
    return correct(output, direction, jnp.ones_like(t, jnp.float32))


def lagrangian(
    flow_map: AffineFlowMap,
    field: Callable[[Array, Time], Array],
    x_t: Array,
    t: Time,
    s: Time,
) -> Correction:
    """Derivative in the end time: ``df/ds`` must be the teacher's velocity at ``f``.

    With ``f = a x + b F``, primes for ``d/ds``, the direction on ``F`` is
    ``(field(f, s) - f') / b'`` with ``f' = a' x + b' F + b dF/ds``; on the linear path
    ``field(f, s) + (t - s) dF/ds - F`` (AYF-LMD, eq. 8; FreeFlow).

    Args:
      flow_map: student.
      field: teacher velocity, evaluated at the student's own point.
      x_t: state ``[B, ...]``.
      t: start time.
      s: end time, at most ``t``.

    Returns:
      A correction of the network output; weight ones over the axes of the times.

    Gradient flow: through the primal ``F`` only; the field's input is constant.

    References:
      Sabour et al., Align Your Flow, 2025, arXiv:2506.14603.
      Boffi et al., Flow Map Matching, 2024, arXiv:2406.07507.
    """
    x_t = sg(x_t)
    t, s = _times(x_t, t, s)
    te, se = expand(t, x_t), expand(s, x_t)
    (a, b), (da, db) = jax.jvp(
        lambda u: flow_map.coefficients(te, u), (se,), (jnp.ones_like(se),)
    )
    with jax.named_scope(TANGENT):
        output, slope = jax.jvp(
            lambda u: flow_map.output(x_t, t, u), (s,), (jnp.ones_like(s),)
        )
    fixed = sg(output)
    moved = a * x_t + b * fixed
    rate = da * x_t + db * fixed + b * sg(slope)
    direction = (sg(field(moved, s)) - rate) / db
    return correct(output, direction, jnp.ones_like(t, jnp.float32))


def dual_end(
    flow_map: AffineFlowMap,
    field: Callable[[Array, Time], Array],
    v: Array,
    x_t: Array,
    t: Time,
    s: Time,
    *,
    start_weight: float = 1.0,
    end_weight: float = 0.5,
) -> Correction:
    """Both derivatives of the map at once: ``gamma`` `eulerian` + ``lam`` `lagrangian`.

    One jvp of the output along ``gamma (v, 1)`` in ``(x, t)`` and ``-lam`` in ``s``
    (each times the factor of its identity) carries both. On the linear path the
    direction is

        gamma v + lam field(f, s) - (gamma + lam) F + (s - t) dF,

    ``dF`` along ``(gamma v, gamma, -lam)``: the residual of Dual-End Consistency (2026,
    noise to noisy), which vanishes on the exact map.

    Args:
      flow_map: student.
      field: teacher velocity, evaluated at the student's own point.
      v: velocity at ``(x_t, t)``, ``[B, ...]``. Constant.
      x_t: state, shape of ``v``.
      t: start time.
      s: end time, at most ``t``.
      start_weight: ``gamma``, at least 0; 0 leaves `lagrangian`.
      end_weight: ``lam``, at least 0; 0 leaves `eulerian`.

    Returns:
      A correction of the network output; weight ones over the axes of the times.

    Gradient flow: through the primal ``F`` only.

    References:
      Dong et al., Dual-End Consistency Model, 2026, arXiv:2602.10764.
    """
    x_t, v = sg(x_t), sg(v)
    t, s = _times(x_t, t, s)
    te, se = expand(t, x_t), expand(s, x_t)
    ones = jnp.ones_like(te)
    (a, b), (da, db) = jax.jvp(lambda u: flow_map.coefficients(u, se), (te,), (ones,))
    _, (ea, eb) = jax.jvp(lambda u: flow_map.coefficients(te, u), (se,), (ones,))
    scale = start_weight * flow_map.tangent_scale(te, se)
    forward, backward = scale * b, -end_weight * b / eb
    with jax.named_scope(TANGENT):
        output, carried = jax.jvp(
            flow_map.output,
            (x_t, t, s),
            (
                (forward * v).astype(x_t.dtype),
                forward.reshape(t.shape),
                backward.reshape(s.shape),
            ),
        )
    fixed = sg(output)
    start = scale * (da * x_t + db * fixed + a * v)
    moved = a * x_t + b * fixed
    end = (sg(field(moved, s)) - ea * x_t - eb * fixed) / eb
    direction = start + end_weight * end + sg(carried)
    return correct(output, direction, jnp.ones_like(t, jnp.float32))


def consistency(
    f: FlowMap,
    f_target: FlowMap,
    x_t: Array,
    t: Time,
    x_tau: Array,
    tau: Time,
    s: Time = 0.0,
) -> Correction:
    """Discrete consistency: two points of one trajectory must map to the same ``x_s``.

    Output ``f(x_t, t, s)``, target ``f_target(x_tau, tau, s)``, or ``x_tau`` itself
    where ``tau = s``.

    Args:
      f: student map.
      f_target: map of the target: the student, its EMA, or a frozen stage.
      x_t: state at ``t``, ``[B, ...]``.
      t: time.
      x_tau: the neighbouring state (teacher step or shared noise), shape of ``x_t``.
      tau: its time, ``s <= tau < t``.
      s: end time.

    Returns:
      A correction of ``f(x_t, t, s)``; weight ones over the axes of the times.

    Gradient flow: to ``f``; the target is constant.

    References:
      Song et al., Consistency Models, 2023, arXiv:2303.01469, eq. 7 and 10.
    """
    t, tau, s = _times(x_t, t, tau, s)
    reached = expand(tau, x_t) <= expand(s, x_t)
    target = jnp.where(reached, x_tau, sg(f_target(x_tau, tau, s)))
    return toward(f(x_t, t, s), target, jnp.ones_like(t, jnp.float32))


def two_jumps(
    flow_map: AffineFlowMap,
    target_map: FlowMap,
    x_t: Array,
    t: Time,
    m: Time,
    s: Time,
    *,
    clip: float | None = None,
) -> Array:
    """The output of ``flow_map`` that jumps where two jumps of ``target_map`` end.

    ``(f'(f'(x, t, m), m, s) - a x) / b`` for ``f = a x + b F``; on the linear path the
    mean of the two rolled-out velocities weighted by their intervals.

    Args:
      flow_map: map whose output is asked for; it is not evaluated.
      target_map: map that is rolled out: the student, its EMA or a teacher.
      x_t: state ``[B, ...]``.
      t: start time.
      m: middle time, ``s < m < t``.
      s: end time.
      clip: largest absolute value of the state in the middle and of the result; None
        leaves them alone.

    Returns:
      The output, shape of ``x_t``.

    Gradient flow: none, the result is constant.
    """

    def within(x: Array) -> Array:
        return x if clip is None else jnp.clip(x, -clip, clip)

    t, m, s = _times(x_t, t, m, s)
    end = target_map(within(target_map(x_t, t, m)), m, s)
    a, b = flow_map.coefficients(expand(t, x_t), expand(s, x_t))
    return sg(within((end - a * x_t) / b))


def semigroup(
    flow_map: AffineFlowMap, target_map: FlowMap, x_t: Array, t: Time, m: Time, s: Time
) -> Correction:
    """One jump must equal two: ``f(x, t, s) = f'(f'(x, t, m), m, s)``.

    The direction lives on the network output: ``(target - f) / b``, see `two_jumps`.

    Args:
      flow_map: student.
      target_map: map rolled out for the target: the student, its EMA or a teacher.
      x_t: state ``[B, ...]``.
      t: start time.
      m: middle time, ``s < m < t``.
      s: end time.

    Returns:
      A correction of the network output; weight ones over the axes of the times.

    Gradient flow: to the student's single jump; the target is constant.

    References:
      Frans et al., One Step Diffusion via Shortcut Models, 2024, arXiv:2410.12557.
      Salimans and Ho, Progressive Distillation, 2022, arXiv:2202.00512.
    """
    t, m, s = _times(x_t, t, m, s)
    implied = two_jumps(flow_map, target_map, x_t, t, m, s)
    output = flow_map.output(x_t, t, s)
    return toward(output, implied, jnp.ones_like(t, jnp.float32))
