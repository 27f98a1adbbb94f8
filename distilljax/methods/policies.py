"""Policies: fields that one evaluation of a network makes, followed for free.

Their clock. A policy is followed in steps that are even in an *unshifted* time ``u``
in [0, 1], ``t = t_max k u / (1 + (k - 1) u)`` with the shift ``k`` of a text-to-image
model (3.2 in pi-Flow's); with ``k = 1`` it is the share of the path's own clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from distilljax.core.binding import Bound, normalization
from distilljax.diffusion.flow_maps import FlowMap
from distilljax.diffusion.paths import Path, Time, expand, guard
from distilljax.diffusion.predictions import VELOCITY, X0, convert, decompose
from distilljax.diffusion.solvers import DDIM, solve
from distilljax.diffusion.times import shifted

Array = jax.Array
sg = jax.lax.stop_gradient


def unshifted(path: Path, t: Time, shift: float) -> Array:
    """``u`` of a time: ``t = t_max shift u / (1 + (shift - 1) u)``."""
    return shifted(jnp.asarray(t) / path.t_max, 1.0 / shift)


def _between(path: Path, t: Time, s: Time, steps: int, shift: float) -> Array:
    """``steps + 1`` times from ``t`` to ``s``, even in ``u``, along the first axis."""
    if steps < 1:
        raise ValueError(f"a policy is followed in at least 1 step, got {steps}")
    t, s = jnp.broadcast_arrays(
        *(jnp.asarray(end, jnp.result_type(float)) for end in (t, s))
    )
    a, b = (unshifted(path, end, shift)[None] for end in (t, s))
    r = (jnp.arange(1, steps) / steps).reshape((-1,) + (1,) * t.ndim)
    inner = path.t_max * shifted((1.0 - r) * a + r * b, shift)
    return jnp.concatenate([t[None], inner.astype(t.dtype), s[None]])


def velocity(policy: Policy, x: Array, t: Time) -> Array:
    """``dx_t/dt`` under a policy, away from ``sigma = 0``."""
    return convert(policy.path, policy.denoised(x, t), x, t, X0, VELOCITY)


def rollout(
    policy: Policy, x: Array, t: Time, s: Time, steps: int, shift: float = 1.0
) -> Array:
    """The state at ``s``, after so many DDIM steps without the network.

    Args:
      policy: what is followed.
      x: state at ``t``, ``[B, ...]``.
      t: start time.
      s: end time.
      steps: number of steps.
      shift: clock in which they are even, see the module docstring.
    """
    path = policy.path
    return solve(
        policy.denoised,
        x,
        _between(path, t, s, steps, shift),
        path=path,
        solver=DDIM(),
        kind="x0",
    )


def mean_velocity(
    policy: Policy, x: Array, t: Time, s: Time, steps: int, shift: float = 1.0
) -> Array:
    """The velocity of a policy averaged over its own way from ``t`` to ``s``.

    ``sum_i (t_i - t_{i+1}) v(x_i, t_i) / (t - s)`` along `rollout`; on the linear path
    ``(x_t - x_s) / (t - s)`` in a form that loses no digits where ``t - s`` is small.
    At ``s = t`` it is `velocity`.

    Args:
      policy: what is followed.
      x: state at ``t``, ``[B, ...]``.
      t: start time, ``[B]``.
      s: end time, ``[B]``, at most ``t``.
      steps: number of steps.
      shift: clock in which they are even.

    Gradient flow: through the policy at every step, and from step to step. The steps
    are computed again in the backward pass, so that only their states are kept.
    """
    path = policy.path
    times = _between(path, t, s, steps, shift)
    steps_of = times[:-1] - times[1:]
    whole = times[0] - times[-1]
    share = jnp.where(whole > 0, steps_of / guard(whole), 1.0 / steps)

    @jax.checkpoint
    def advance(x: Array, t: Array, s: Array) -> tuple[Array, Array]:
        denoised = policy.denoised(x, t)
        v = convert(path, denoised, x, t, X0, VELOCITY)
        return path.jump(denoised, x, t, s), v

    def one(carry: tuple[Array, Array], step: tuple[Array, ...]):
        (x, total), (t, s, r) = carry, step
        moved, v = advance(x, t, s)
        total = total + (expand(r, v) * v).astype(total.dtype)
        return (moved.astype(x.dtype), total), None

    start = (x, jnp.zeros_like(x))
    return jax.lax.scan(one, start, (times[:-1], times[1:], share))[0][1]


class Policy(Protocol):
    """A denoiser that one evaluation of a network makes."""

    @property
    def path(self) -> Path: ...

    @property
    def means(self) -> Array: ...

    def denoised(self, x: Array, t: Time) -> Array: ...

    def fixed(self, dropped: Array) -> Policy: ...


class MixturePolicy(NamedTuple):
    """The denoiser that a Gaussian mixture for ``x0`` at one state implies at others.

    With ``p(x0 | x_src) = sum w_k N(mu_k, q^2)`` the state ``x`` at a lower noise level
    replaces the likelihood of the source by its own. With ``nu = alpha x - r x_src``,
    ``zeta = alpha^2 - r alpha_src``, ``r = alpha_src sigma^2 / sigma_src^2``,

        mean_k = (q^2 nu + sigma^2 mu_k) / (q^2 zeta + sigma^2)
        logit_k = log w_k + sum mu_k (nu - zeta mu_k / 2) / (q^2 zeta + sigma^2)

    and ``D = sum softmax(logit)_k mean_k``: GMFlow's policy times ``sigma^2``, so that
    it is regular at the data.

    Attributes:
      path: path of the states and times.
      x_src: state at which the network was asked, ``[B, ...]``.
      t_src: its time ``[B]``.
      means: ``mu_k``, ``[B, K, ...]``.
      variance: ``q^2``, ``[B]``.
      logits: ``log w_k`` up to a constant, ``[B, K, ...]``; an axis of length one
        shares the weights, and the sum runs over it.
    """

    path: Path
    x_src: Array
    t_src: Array
    means: Array
    variance: Array
    logits: Array

    def denoised(self, x: Array, t: Time) -> Array:
        """``E[x0 | x_t = x]`` under the policy, ``sigma(t)`` at most the source's."""
        path, te, src = self.path, expand(t, x), expand(self.t_src, x)
        alpha, spread = path.alpha(te), path.sigma(te) ** 2
        ratio = path.alpha(src) * spread / guard(path.sigma(src) ** 2)
        nu = (alpha * x - ratio * self.x_src)[:, None]
        zeta = (alpha**2 - ratio * path.alpha(src))[:, None]
        q2, spread = expand(self.variance, x)[:, None], spread[:, None]
        total = guard(q2 * zeta + spread)
        means = (q2 * nu + spread * self.means) / total
        gain = self.means * (nu - 0.5 * zeta * self.means) / total
        shared = tuple(i for i in range(2, x.ndim + 1) if self.logits.shape[i] == 1)
        logits = self.logits + jnp.sum(gain, shared, keepdims=True)
        return jnp.sum(jax.nn.softmax(logits, axis=1) * means, axis=1)

    def fixed(self, dropped: Array) -> MixturePolicy:
        """The policy as a constant, without the components that are dropped ``[B, K]``.

        Where all are, none is.
        """
        dropped = dropped & ~jnp.all(dropped, axis=1, keepdims=True)
        logits = jnp.where(expand(dropped * 1.0, self.logits) > 0, -1e9, self.logits)
        out = self._replace(logits=logits)
        return out._replace(
            **{k: sg(getattr(out, k)) for k in ("x_src", "means", "variance", "logits")}
        )

    def cooled(self, temperature: Array | float) -> MixturePolicy:
        """The policy at a temperature: weights to its inverse, variance times it."""
        return self._replace(
            logits=self.logits / temperature, variance=self.variance * temperature
        )


class GridPolicy(NamedTuple):
    """The denoiser that depends on the time alone: estimates of ``x0`` in between.

    The paper's DX policy: linear interpolation between estimates at even times of the
    segment, even in the unshifted clock. It is exact where ``E[x0]`` along the path is
    piecewise linear in it.

    Attributes:
      path: path of the states and times.
      t_src: time at which the network was asked, ``[B]``.
      t_dst: end of the segment, ``[B]``.
      means: estimates, from ``t_dst`` to ``t_src``, ``[B, N, ...]``.
      shift: of the clock, see the module docstring.
    """

    path: Path
    t_src: Array
    t_dst: Array
    means: Array
    shift: float = 1.0

    def denoised(self, x: Array, t: Time) -> Array:
        """The estimate at ``t``; the nearest one outside the segment."""
        last = self.means.shape[1] - 1
        u, src, dst = (
            unshifted(self.path, time, self.shift)
            for time in (t, self.t_src, self.t_dst)
        )
        share = (u - dst) / guard(src - dst)
        place = last * jnp.clip(jnp.broadcast_to(share, x.shape[:1]), 0.0, 1.0)
        # A hat function of the place around every estimate.
        hats = jnp.maximum(1.0 - jnp.abs(place[:, None] - jnp.arange(last + 1)), 0.0)
        return jnp.sum(expand(hats, self.means) * self.means, axis=1)

    def fixed(self, dropped: Array) -> GridPolicy:
        """The policy as a constant; no estimate can be dropped."""
        return self._replace(means=sg(self.means))


class PolynomialPolicy(NamedTuple):
    """The denoiser that is a polynomial in the time since the network was asked.

    The paper's DX policy in its other form: ``D = sum_i (u_src - u)^i c_i`` in the
    unshifted clock. Every coefficient is read from its prediction as an estimate of
    ``x0`` would be (``x_src - t_src v_i`` on the linear path), the released code's
    form, so that predictions of zero are coefficients ``x_src``. It is exact where
    ``E[x0]`` along the path is a polynomial of that order.

    Attributes:
      path: path of the states and times.
      t_src: time at which the network was asked, ``[B]``.
      means: coefficients ``c_i`` from the constant one on, ``[B, N, ...]``.
      shift: of the clock, see the module docstring.
    """

    path: Path
    t_src: Array
    means: Array
    shift: float = 1.0

    def denoised(self, x: Array, t: Time) -> Array:
        """The polynomial at ``t``."""
        now, src = (unshifted(self.path, a, self.shift) for a in (t, self.t_src))
        away = jnp.broadcast_to(src - now, x.shape[:1])[:, None]
        powers = jnp.cumprod(
            jnp.concatenate(
                [jnp.ones_like(away)] + [away] * (self.means.shape[1] - 1), axis=1
            ),
            axis=1,
        )
        return jnp.sum(expand(powers, self.means) * self.means, axis=1)

    def fixed(self, dropped: Array) -> PolynomialPolicy:
        """The policy as a constant; no coefficient can be dropped."""
        return self._replace(means=sg(self.means))


def policy_of(
    net: Bound, cond: Any, x: Array, t: Time, end: Time, shift: float = 1.0
) -> MixturePolicy:
    """The mixture policy of a network at ``(x, t)``, on the network's own path.

    Its function ``policy(x, t, cond)`` gives predictions ``[B, K, ...]`` of the
    network's kind, their log standard deviation ``[B]`` and logits.
    """
    path, kind, t = net.path, net.kind, _times(x, t)
    divisor, scale = normalization(path, kind, x, t)
    predictions, log_std, logits = net.call("policy", x / divisor, t, cond)
    means, _ = decompose(path, kind, scale * predictions, x[:, None], t)
    gain, _ = decompose(path, kind, jnp.ones_like(t), jnp.zeros_like(t), t)
    variance = (scale * gain * jnp.exp(log_std)) ** 2
    return MixturePolicy(path, x, t, means, variance, logits)


def grid_policy_of(
    net: Bound, cond: Any, x: Array, t: Time, end: Time, shift: float = 1.0
) -> GridPolicy:
    """The grid policy of a network at ``(x, t)`` for the segment that ends at ``end``.

    Of the network's function ``policy`` it takes the predictions alone.
    """
    t, means = _means(net, cond, x, t)
    return GridPolicy(net.path, t, _times(x, end), means, shift)


def polynomial_policy_of(
    net: Bound, cond: Any, x: Array, t: Time, end: Time, shift: float = 1.0
) -> PolynomialPolicy:
    """The polynomial policy of a network at ``(x, t)``, of its predictions alone."""
    t, means = _means(net, cond, x, t)
    return PolynomialPolicy(net.path, t, means, shift)


def _means(net: Bound, cond: Any, x: Array, t: Time) -> tuple[Array, Array]:
    """The time ``[B]`` and the estimates of ``x0`` that the predictions are."""
    path, kind, t = net.path, net.kind, _times(x, t)
    divisor, scale = normalization(path, kind, x, t)
    predictions = net.call("policy", x / divisor, t, cond)[0]
    return t, decompose(path, kind, scale * predictions, x[:, None], t)[0]


def _times(x: Array, t: Time) -> Array:
    t = jnp.asarray(t, jnp.promote_types(x.dtype, jnp.float32))
    return jnp.broadcast_to(t, x.shape[:1])


POLICIES: dict[str, Callable[..., Policy]] = {
    "mixture": policy_of,
    "grid": grid_policy_of,
    "polynomial": polynomial_policy_of,
}


@dataclasses.dataclass(frozen=True)
class PolicyView:
    """Sampling with one policy a step: the network is asked once, then followed.

    Attributes:
      substeps: policy steps of a sampler's step.
      policy: name in `POLICIES`.
      shift: of the clock in which they are even.
      temperature: of a mixture in all steps but the one that ends at the data, see
        `MixturePolicy.cooled`; 1 leaves it as it is.
    """

    substeps: int = 128
    policy: str = "mixture"
    shift: float = 1.0
    temperature: float = 1.0

    def __call__(self, net: Bound, cond: Any, path: Path) -> FlowMap:
        def flow_map(x: Array, t: Time, s: Time) -> Array:
            made = POLICIES[self.policy](net, cond, x, t, s, self.shift)
            if self.temperature != 1.0:
                last = jnp.all(jnp.asarray(s) == 0.0)
                made = made.cooled(jnp.where(last, 1.0, self.temperature))
            return rollout(made, x, t, s, self.substeps, self.shift)

        return flow_map
