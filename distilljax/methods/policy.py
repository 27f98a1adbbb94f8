"""Students that emit a policy: a field that one evaluation makes, followed for free."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from distilljax import losses
from distilljax.axes import looked_up
from distilljax.binding import Bound, normalization
from distilljax.context import Context
from distilljax.errors import unknown
from distilljax.flow_maps import FlowMap, ode_flow_map
from distilljax.method import Citation, Method, Phase, Role, Sampling, Term, check
from distilljax.methods.parts import TEACHER, guidance_needs
from distilljax.paths import Path, Time, expand, guard
from distilljax.predictions import VELOCITY, X0, convert, decompose
from distilljax.sampling import Deterministic
from distilljax.solvers import DDIM
from distilljax.times import EvenGrid, Grid, Ramp, Schedule, value_at

Array = jax.Array
sg = jax.lax.stop_gradient

PI_FLOW = Citation(
    "pi_flow",
    "pi-Flow: Policy-Based Few-Step Generation via Imitation Distillation",
    "Chen, Zhang, Tan, Guibas, Wetzstein, Bi",
    2025,
    "arXiv:2510.14974",
)


def velocity(policy: Policy, x: Array, t: Time) -> Array:
    """``dx_t/dt`` under a policy, away from ``sigma = 0``."""
    return convert(policy.path, policy.denoised(x, t), x, t, X0, VELOCITY)


def rollout(policy: Policy, x: Array, t: Time, s: Time, steps: int) -> Array:
    """The state at ``s``, after so many DDIM steps without the network."""
    jump = ode_flow_map(
        policy.denoised, policy.path, steps=steps, solver=DDIM(), kind="x0"
    )
    return jump(x, t, s)


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


class GridPolicy(NamedTuple):
    """The denoiser that depends on the time alone: estimates of ``x0`` in between.

    The paper's DX policy: linear interpolation between estimates at even times of the
    segment. It is exact where ``E[x0]`` along the path is piecewise linear in the time.

    Attributes:
      path: path of the states and times.
      t_src: time at which the network was asked, ``[B]``.
      t_dst: end of the segment, ``[B]``.
      means: estimates, from ``t_dst`` to ``t_src``, ``[B, N, ...]``.
    """

    path: Path
    t_src: Array
    t_dst: Array
    means: Array

    def denoised(self, x: Array, t: Time) -> Array:
        """The estimate at ``t``; the nearest one outside the segment."""
        last = self.means.shape[1] - 1
        share = (t - self.t_dst) / guard(self.t_src - self.t_dst)
        place = last * jnp.clip(jnp.broadcast_to(share, x.shape[:1]), 0.0, 1.0)
        # A hat function of the place around every estimate.
        hats = jnp.maximum(1.0 - jnp.abs(place[:, None] - jnp.arange(last + 1)), 0.0)
        return jnp.sum(expand(hats, self.means) * self.means, axis=1)

    def fixed(self, dropped: Array) -> GridPolicy:
        """The policy as a constant; no estimate can be dropped."""
        return self._replace(means=sg(self.means))


def policy_of(net: Bound, cond: Any, x: Array, t: Time, end: Time) -> MixturePolicy:
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


def grid_policy_of(net: Bound, cond: Any, x: Array, t: Time, end: Time) -> GridPolicy:
    """The grid policy of a network at ``(x, t)`` for the segment that ends at ``end``.

    Of the network's function ``policy`` it takes the predictions alone.
    """
    path, kind, t = net.path, net.kind, _times(x, t)
    divisor, scale = normalization(path, kind, x, t)
    predictions = net.call("policy", x / divisor, t, cond)[0]
    means, _ = decompose(path, kind, scale * predictions, x[:, None], t)
    return GridPolicy(path, t, _times(x, end), means)


def _times(x: Array, t: Time) -> Array:
    t = jnp.asarray(t, jnp.promote_types(x.dtype, jnp.float32))
    return jnp.broadcast_to(t, x.shape[:1])


POLICIES: dict[str, Callable[..., Policy]] = {
    "mixture": policy_of,
    "grid": grid_policy_of,
}


@dataclasses.dataclass(frozen=True)
class PolicyView:
    """Sampling with one policy a step: the network is asked once, then followed.

    Attributes:
      substeps: policy steps of a sampler's step.
      policy: name in `POLICIES`.
    """

    substeps: int = 128
    policy: str = "mixture"

    def __call__(self, net: Bound, cond: Any, path: Path) -> FlowMap:
        def flow_map(x: Array, t: Time, s: Time) -> Array:
            made = POLICIES[self.policy](net, cond, x, t, s)
            return rollout(made, x, t, s, self.substeps)

        return flow_map


def pi_flow(
    *,
    steps: int = 1,
    grid: Grid = EvenGrid(),
    policy: str = "mixture",
    states: int = 2,
    substeps: int = 32,
    sampling_substeps: int = 128,
    dropout: float = 0.05,
    teacher_ratio: Schedule = Ramp(2000, 1.0, 0.0),
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Method:
    """pi-Flow: a policy made by one evaluation imitates the teacher where it goes.

    On a segment ``[t_src, t_dst]`` of the grid the student emits a policy ``pi``. The
    policy, held constant and with components dropped, is rolled out to ``states``
    random times, and

        mean over states |pi(x_a, t_a) - v(x_a, t_a)|^2 / 2

    with the teacher's velocity ``v``; the gradient flows through the policy's
    parameters at fixed states. Early in training the teacher itself moves the state
    through a share ``teacher_ratio`` of the way. The paper's options with no part here:
    the average over a window, the data-free rollout and the temperature.

    Args:
      steps: network evaluations that the student is trained for.
      grid: its segments.
      policy: ``mixture``, see `MixturePolicy`, or ``grid``, see `GridPolicy`, which
        should be sampled on the segments of training.
      states: states of a rollout at which the teacher is asked.
      substeps: policy steps between two of them; the paper takes 128 per unit of time.
      sampling_substeps: policy steps of a segment when sampling.
      dropout: share of a mixture's components dropped in the rollout.
      teacher_ratio: share of the way that the teacher moves the state.
      guidance: scale ``w`` of the teacher.
      guidance_interval: times at which guidance is on.

    Returns:
      The method. Batch: ``x0`` (and ``cond``). Roles: student, the network ``policy``
      with a function of that name (see `networks.policy`), and teacher.
    """

    if policy not in POLICIES:
        raise ValueError(unknown("policy", policy, POLICIES))

    def imitate(ctx: Context) -> Array:
        student = ctx.nets.student
        way = student.path
        times = jnp.asarray(grid(steps, way), jnp.float32)
        place = times[0] * ctx.uniform("segment")[:, None]
        index = jnp.sum(place < times[None, 1:-1], axis=1)
        t, end = looked_up(times, index), looked_up(times, index + 1)
        x = way.noise(ctx.data["x0"], ctx.normal("eps"), t)
        made = POLICIES[policy](student, ctx.cond, x, t, end)
        count = made.means.shape[1]
        moving = made.fixed(ctx.uniform("drop", (ctx.batch_size, count)) < dropout)
        field = ctx.nets.teacher.guided(
            ctx.data,
            guidance,
            kind="velocity",
            path=way,
            interval=guidance_interval,
        )
        ratio = value_at(teacher_ratio, ctx.step)
        lowest = max(way.t_min, 1e-3 * way.t_max)
        own = jnp.sort(ctx.uniform("student_way", (ctx.batch_size, states)), axis=1)
        lent = ctx.uniform("teacher_way", (ctx.batch_size, states - 1))
        lent = jnp.pad(jnp.sort(lent, axis=1), ((0, 0), (0, 1)), constant_values=1.0)
        own, lent = (
            share
            * jnp.diff(jnp.pad(ends, ((0, 0), (1, 0))), axis=1)
            * (t - end)[:, None]
            for share, ends in ((1.0 - ratio, own), (ratio, lent))
        )
        values = []
        for k in range(states):
            at = jnp.maximum(t - own[:, k], lowest)
            x_a = sg(rollout(moving, x, t, at, substeps))
            v = sg(field(x_a, at))
            values.append(losses.regress(losses.toward(velocity(made, x_a, at), v)))
            t = jnp.maximum(at - lent[:, k], lowest)
            x = x_a + expand(t - at, x_a) * v
        return jnp.mean(jnp.stack(values), axis=0)

    return check(
        Method(
            name="pi_flow",
            roles={
                "student": Role(network="policy"),
                "teacher": TEACHER._replace(needs=guidance_needs(guidance)),
            },
            phases=(Phase("student", ("student",), (Term("imitate", imitate),)),),
            sampling=Sampling(
                grid, Deterministic(), view=PolicyView(sampling_substeps, policy)
            ),
            cite=(PI_FLOW,),
        )
    )
