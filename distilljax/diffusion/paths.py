"""Forward paths ``x_t = alpha(t) x0 + beta(t) y + sigma(t) eps``.

Data sits at ``t = 0`` and noise at ``t = t_max``. A path is a value of one frozen
type: it owns the coefficients, their derivatives, the clock of its times, the data
scale ``sigma_d`` and the point where generation starts. Nothing outside this file
writes ``alpha * x0 + sigma * eps`` by hand.

| path | alpha | beta | sigma | t_max |
|---|---|---|---|---|
| `linear` | 1 - t | 0 | t | 1 |
| `vp` | exp(-(b1-b0) t^2/4 - b0 t/2) | 0 | sqrt(1 - alpha^2) | 1 |
| `vp_scaled_linear` | table of Stable Diffusion | 0 | sqrt(1 - alpha^2) | 1 |
| `vp_cosine` | cos-schedule | 0 | sqrt(1 - alpha^2) | 1 |
| `edm` (VE) | 1 | 0 | t | sigma_max |
| `trigflow` | cos t | 0 | sigma_d sin t | pi/2 |
| `bridge_linear` | 1 - t | t sqrt(1 - q^2) | t q | 1 |
| `bridge_residual` | 1 - t | t | kappa sqrt(t) | 1 |

Two paths with the same data describe the same family of marginals up to a rescaling of
``x`` and a change of time. The change of time matches the *noise angle*
``arctan2(sigma, alpha)``, which, unlike log-SNR, stays finite at both ends.

References:
  Song et al., Score-Based Generative Modeling through SDEs, 2021, arXiv:2011.13456.
  Karras et al., Elucidating the Design Space of Diffusion Models, 2022,
    arXiv:2206.00364.
  Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency
    Models, 2024, arXiv:2410.11081 (TrigFlow).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.runtime import words

Array = jax.Array
Time = Array | float


def expand(t: Time, x: Array) -> Array:
    """Aligns a time with the data it belongs to, from the left.

    Args:
      t: a scalar or an array whose axes are the leading axes of ``x``: ``[B]``,
        ``[B, frames]``, ``[B, tokens]``.
      x: data, ``[B, ...]``.

    Returns:
      ``t`` in at least float32 with trailing axes of length one.

    Raises:
      ValueError: if the axes of ``t`` are not leading axes of ``x``.
    """
    if isinstance(t, (int, float)):
        t = jnp.asarray(t, jnp.promote_types(x.dtype, jnp.float32))
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        t = t.astype(jnp.float32)
    t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
    lead = x.shape[: t.ndim]
    fits = t.ndim <= x.ndim and all(
        a in (1, b) for a, b in zip(t.shape, lead, strict=True)
    )
    if not fits:
        raise ValueError(
            f"t must be a scalar or match the leading axes of x {x.shape}, got shape "
            f"{t.shape}; pass one time per sample, [B], or per frame, [B, frames]"
        )
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


class Coefficients(Protocol):
    """What a kind of path has to say; elementwise in ``t``."""

    def alpha(self, t: Array) -> Array: ...

    def beta(self, t: Array) -> Array: ...

    def sigma(self, t: Array) -> Array: ...

    def time_of_angle(self, angle: Array) -> Array:
        """Inverse of ``arctan2(sigma, alpha)``."""
        ...


def _none(t: Array) -> Array:
    return jnp.zeros_like(t)


@dataclasses.dataclass(frozen=True)
class _Linear:
    """``alpha = 1 - t, beta = t sqrt(1 - q^2), sigma = t q``; ``q = 1`` has no y."""

    q: float = 1.0

    def alpha(self, t: Array) -> Array:
        return 1.0 - t

    def beta(self, t: Array) -> Array:
        return t * math.sqrt(1.0 - self.q**2)

    def sigma(self, t: Array) -> Array:
        return t * self.q

    def time_of_angle(self, angle: Array) -> Array:
        s, c = jnp.sin(angle), jnp.cos(angle)
        return s / (s + self.q * c)


def _decay(angle: Array, alpha_end: float) -> Array:
    """``-log cos(angle)``, at most that of the last alpha."""
    cos = jnp.maximum(jnp.cos(angle), alpha_end)
    # -log(cos) loses its digits at the data end, the other form at the noise end.
    near = -0.5 * jnp.log1p(-jnp.minimum(jnp.sin(angle) ** 2, 0.6))
    return jnp.where(cos > 0.7, near, -jnp.log(cos))


@dataclasses.dataclass(frozen=True)
class _VP:
    """Variance preserving with beta(t) linear from ``start`` to ``end``."""

    start: float
    end: float

    def _log_alpha(self, t: Array) -> Array:
        return -0.25 * (self.end - self.start) * t**2 - 0.5 * self.start * t

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self._log_alpha(t))

    beta = staticmethod(_none)

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2.0 * self._log_alpha(t)))

    def time_of_angle(self, angle: Array) -> Array:
        alpha_end = math.exp(-0.25 * (self.end - self.start) - 0.5 * self.start)
        decay = _decay(angle, alpha_end)
        half = 0.5 * self.start
        root = jnp.sqrt(half**2 + (self.end - self.start) * decay)
        return 2.0 * decay / (half + root)


@functools.cache
def _scaled_linear(
    start: float, end: float, steps: int
) -> tuple[tuple[float, ...], ...]:
    """``(t, -log alpha)`` of all steps, the data at ``t = 0`` included."""
    betas = np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2
    decay = np.concatenate([[0.0], -0.5 * np.cumsum(np.log1p(-betas))])
    return tuple(np.arange(steps + 1) / steps), tuple(decay)


@dataclasses.dataclass(frozen=True)
class _VPScaledLinear:
    """``alpha^2`` the product of ``1 - beta``, ``sqrt(beta)`` linear over the steps."""

    start: float
    end: float
    steps: int

    def _table(self) -> tuple[Array, Array]:
        times, decay = _scaled_linear(self.start, self.end, self.steps)
        return jnp.asarray(times), jnp.asarray(decay)

    def _log_alpha(self, t: Array) -> Array:
        return -jnp.interp(t, *self._table())

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self._log_alpha(t))

    beta = staticmethod(_none)

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2.0 * self._log_alpha(t)))

    def time_of_angle(self, angle: Array) -> Array:
        times, decay = self._table()
        last = _scaled_linear(self.start, self.end, self.steps)[1][-1]
        return jnp.interp(_decay(angle, math.exp(-last)), decay, times)


@dataclasses.dataclass(frozen=True)
class _VPCosine:
    """``alpha = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s))``."""

    offset: float

    def _phase_at_zero(self) -> float:
        return 0.5 * math.pi * self.offset / (1.0 + self.offset)

    def alpha(self, t: Array) -> Array:
        phase = 0.5 * math.pi * (t + self.offset) / (1.0 + self.offset)
        return jnp.cos(phase) / math.cos(self._phase_at_zero())

    beta = staticmethod(_none)

    def sigma(self, t: Array) -> Array:
        # 1 - alpha^2 by the difference of two squared sines: no digits lost near 0.
        start, moved = self._phase_at_zero(), 0.5 * math.pi * t / (1.0 + self.offset)
        product = jnp.sin(moved) * jnp.sin(moved + 2.0 * start)
        return jnp.sqrt(jnp.maximum(product, 0.0)) / math.cos(start)

    def time_of_angle(self, angle: Array) -> Array:
        start, s, c = self._phase_at_zero(), jnp.sin(angle), jnp.cos(angle)
        sine = jnp.hypot(s, c * math.sin(start))
        phase = jnp.arctan2(sine, jnp.maximum(c * math.cos(start), 0.0))
        return phase * (1.0 + self.offset) / (0.5 * math.pi) - self.offset


@dataclasses.dataclass(frozen=True)
class _EDM:
    """Variance exploding: ``alpha = 1, sigma = t``."""

    sigma_max: float

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    beta = staticmethod(_none)

    def sigma(self, t: Array) -> Array:
        return t

    def time_of_angle(self, angle: Array) -> Array:
        return jnp.tan(jnp.minimum(angle, math.atan(self.sigma_max)))


@dataclasses.dataclass(frozen=True)
class _TrigFlow:
    """``alpha = cos t, sigma = sigma_d sin t``."""

    sigma_d: float

    def alpha(self, t: Array) -> Array:
        return jnp.cos(t)

    beta = staticmethod(_none)

    def sigma(self, t: Array) -> Array:
        return self.sigma_d * jnp.sin(t)

    def time_of_angle(self, angle: Array) -> Array:
        return jnp.arctan2(jnp.sin(angle) / self.sigma_d, jnp.cos(angle))


@dataclasses.dataclass(frozen=True)
class _Residual:
    """Residual shifting (ResShift): ``1 - t, t, kappa sqrt(t)``, the clock is eta."""

    kappa: float

    def alpha(self, t: Array) -> Array:
        return 1.0 - t

    def beta(self, t: Array) -> Array:
        return t

    def sigma(self, t: Array) -> Array:
        return self.kappa * jnp.sqrt(t)

    def time_of_angle(self, angle: Array) -> Array:
        s, c = jnp.sin(angle), jnp.cos(angle)
        root = 2.0 * s / (self.kappa * c + jnp.hypot(self.kappa * c, 2.0 * s))
        return root**2


def _slope(fn: Callable[[Array], Array], t: Array) -> Array:
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]


def guard(x: Array) -> Array:
    """Keeps a divisor away from zero without changing its sign."""
    tiny = 1e-12 if x.dtype == jnp.float64 else 1e-8
    return jnp.where(jnp.abs(x) < tiny, jnp.where(x < 0, -tiny, tiny), x)


@dataclasses.dataclass(frozen=True)
class Path:
    """One forward path; compare paths with ``==``.

    Attributes:
      coefficients: alpha, beta and sigma as functions of time.
      t_max: time at which generation starts, in the path's own clock.
      t_min: smallest time at which a network is asked. Derivatives are taken at
        ``max(t, t_min)``, since sigma of the VP and residual paths has an infinite
        slope at 0.
      sigma_d: standard deviation of the data; networks see ``x / sigma_d``.
    """

    coefficients: Coefficients
    t_max: float = 1.0
    t_min: float = 0.0
    sigma_d: float = 1.0

    def alpha(self, t: Array) -> Array:
        """Data coefficient, elementwise."""
        return self.coefficients.alpha(t)

    def beta(self, t: Array) -> Array:
        """Coefficient of the known endpoint ``y``, elementwise."""
        return self.coefficients.beta(t)

    def sigma(self, t: Array) -> Array:
        """Noise coefficient, elementwise."""
        return self.coefficients.sigma(t)

    def alpha_dot(self, t: Array) -> Array:
        """Time derivative of alpha, elementwise."""
        return _slope(self.coefficients.alpha, self._inside(t))

    def beta_dot(self, t: Array) -> Array:
        """Time derivative of beta, elementwise."""
        return _slope(self.coefficients.beta, self._inside(t))

    def sigma_dot(self, t: Array) -> Array:
        """Time derivative of sigma, elementwise."""
        return _slope(self.coefficients.sigma, self._inside(t))

    def _inside(self, t: Array) -> Array:
        return jnp.maximum(t, self.t_min) if self.t_min > 0.0 else t

    def _endpoint(self, coefficient: Array, y: Array | None) -> Array | float:
        if y is None:
            if self.bridges:
                raise ValueError(
                    "y must be given on a bridge path (the known endpoint, shape of "
                    "x), got None"
                )
            return 0.0
        return coefficient * y

    @property
    def bridges(self) -> bool:
        """Whether the path has a known endpoint ``y``."""
        c = self.coefficients
        return isinstance(c, _Residual) or (isinstance(c, _Linear) and c.q < 1.0)

    @property
    def family(self) -> str:
        """``edm``, ``vp``, ``trigflow``, ``bridge`` or ``linear``.

        What the releases of a method draw, weigh and sample with differs by it, see
        `clocks.ByPath`; a path of coefficients of one's own is ``other``.
        """
        if self.bridges:
            return "bridge"
        return _FAMILIES.get(type(self.coefficients), "other")

    @property
    def exploding(self) -> bool:
        """Whether the clock is the noise level itself (EDM), many times the data's."""
        return self.family == "edm"

    @property
    def boundary(self) -> float:
        """Time at which consistency models of this path are the identity.

        ``sigma_min`` on EDM (Song et al. 2023, appendix C), the data elsewhere.
        """
        return self.t_min if self.exploding else 0.0

    def angle(self, t: Array) -> Array:
        """Noise angle ``arctan2(sigma, alpha)`` in ``[0, pi/2]``, elementwise."""
        return jnp.arctan2(self.sigma(t), self.alpha(t))

    def time_of_angle(self, angle: Array) -> Array:
        """Time at which the noise angle is ``angle``, elementwise."""
        return self.coefficients.time_of_angle(angle)

    def time_of_ratio(self, ratio: Array) -> Array:
        """Time at which ``sigma/alpha`` is ``ratio``, elementwise; exact on EDM."""
        if self.exploding:
            return jnp.minimum(ratio, self.t_max)
        return self.time_of_angle(jnp.arctan(ratio))

    def log_snr(self, t: Array) -> Array:
        """``log(alpha^2 / sigma^2)``, elementwise; infinite at the ends."""
        return 2.0 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time_of(self, log_snr: Array) -> Array:
        """Time of a log-SNR, elementwise; total, infinities included."""
        return self.time_of_angle(jnp.arctan(jnp.exp(-0.5 * jnp.asarray(log_snr))))

    def scale(self, t: Array) -> Array:
        """``sqrt(alpha^2 sigma_d^2 + sigma^2)``: the spread of ``x_t``, elementwise."""
        return jnp.hypot(self.alpha(t) * self.sigma_d, self.sigma(t))

    def noise(self, x0: Array, eps: Array, t: Time, y: Array | None = None) -> Array:
        """``x_t = alpha x0 + beta y + sigma eps``.

        Args:
          x0: data ``[B, ...]``.
          eps: standard normal noise, shape of ``x0``.
          t: time, scalar or leading axes of ``x0``, in ``[0, t_max]``.
          y: known endpoint of a bridge, shape of ``x0``.

        Returns:
          ``x_t``, shape of ``x0``.
        """
        t = expand(t, x0)
        known = self._endpoint(self.beta(t), y)
        return self.alpha(t) * x0 + known + self.sigma(t) * eps

    def velocity(self, x0: Array, eps: Array, t: Time, y: Array | None = None) -> Array:
        """Conditional velocity ``alpha' x0 + beta' y + sigma' eps``; see `noise`."""
        t = expand(t, x0)
        known = self._endpoint(self.beta_dot(t), y)
        return self.alpha_dot(t) * x0 + known + self.sigma_dot(t) * eps

    def strip(self, x: Array, t: Time, y: Array | None) -> Array:
        """``x - beta y``: afterwards every conversion is that of a plain path."""
        return x - self._endpoint(self.beta(expand(t, x)), y)

    def renoise_from(
        self, x_s: Array, s: Time, t: Time, eps: Array
    ) -> tuple[Array, Array]:
        """Carries a state from level ``s`` to the noisier level ``t``.

        ``x_t = (alpha_t/alpha_s) x_s + sqrt(v) eps`` with
        ``v = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2``; the denoiser target given
        ``x_s`` is ``(x_t - sigma_t^2 eps / sqrt(v)) / alpha_t``, which is ``x_s`` at
        ``s = 0``.

        Args:
          x_s: state at ``s``, ``[B, ...]``.
          s: level of the state, ``0 <= s < t``.
          t: target level.
          eps: standard normal noise, shape of ``x_s``.

        Returns:
          ``(x_t, denoiser target)``, both of the shape of ``x_s``.
        """
        s, t = expand(s, x_s), expand(t, x_s)
        ratio = self.alpha(t) / guard(self.alpha(s))
        variance = self.sigma(t) ** 2 - (ratio * self.sigma(s)) ** 2
        std = jnp.sqrt(jnp.maximum(variance, 0.0))
        x_t = ratio * x_s + std * eps
        # The direct form loses digits as alpha_t -> 0; both terms share eps.
        kept = x_s / guard(self.alpha(s))
        drift = (std - self.sigma(t) ** 2 / guard(std)) / guard(self.alpha(t))
        return x_t, kept + jnp.where(self.sigma(s) == 0.0, 0.0, drift) * eps

    def jump(
        self, denoised: Array, x: Array, t: Time, s: Time, y: Array | None = None
    ) -> Array:
        """Deterministic (DDIM) step ``t -> s`` along a fixed denoiser prediction.

        ``alpha_s D + beta_s y + (sigma_s/sigma_t)(x - alpha_t D - beta_t y)``.

        Args:
          denoised: prediction of ``x0`` at ``(x, t)``, shape of ``x``.
          x: state at ``t``, ``[B, ...]``.
          t: start time, ``sigma(t) > 0``.
          s: end time.
          y: known endpoint of a bridge.

        Returns:
          The state at ``s``.
        """
        return self.step(x, denoised, t, s, y)

    def invert_jump(self, x_s: Array, x_t: Array, s: Time, t: Time) -> Array:
        """The denoiser prediction whose `jump` leads from ``x_t`` to ``x_s``.

        ``(x_s - r x_t) / (alpha_s - r alpha_t)`` with ``r = sigma_s / sigma_t``
        (Multistep Consistency Models, 2024, Algorithm 2).
        """
        s, t = expand(s, x_s), expand(t, x_t)
        ratio = self.sigma(s) / guard(self.sigma(t))
        return (x_s - ratio * x_t) / guard(self.alpha(s) - ratio * self.alpha(t))

    def step(
        self,
        x: Array,
        denoised: Array,
        t: Time,
        s: Time,
        y: Array | None = None,
        zeta: Time = 0.0,
        xi: Array | None = None,
    ) -> Array:
        """General step: `jump` with a share ``zeta`` of fresh noise.

        ``alpha_s D + beta_s y + sqrt(sigma_s^2 - zeta^2) e + zeta xi`` with
        ``e = (x - alpha_t D - beta_t y)/sigma_t``.

        Args:
          x: state at ``t``, ``[B, ...]``.
          denoised: prediction of ``x0``, shape of ``x``.
          t: start time.
          s: end time.
          y: known endpoint of a bridge.
          zeta: standard deviation of the fresh noise, in ``[0, sigma_s]``.
          xi: standard normal noise, needed when ``zeta`` is not 0.

        Returns:
          The state at ``s``.
        """
        t, s = expand(t, x), expand(s, x)
        clean = self.strip(x, t, y)
        sigma_s, zeta_x = self.sigma(s), expand(zeta, x)
        kept = jnp.where(
            zeta_x == 0.0,
            sigma_s,
            jnp.sqrt(jnp.maximum(sigma_s**2 - zeta_x**2, 0.0)),
        )
        predicted = (clean - self.alpha(t) * denoised) / guard(self.sigma(t))
        out = self.alpha(s) * denoised + kept * predicted
        out = out + self._endpoint(self.beta(s), y)
        return out if xi is None else out + zeta_x * xi

    def start(self, eps: Array, y: Array | None = None, t: Time | None = None) -> Array:
        """State from which generation starts: ``beta(t) y + sigma(t) eps``.

        Args:
          eps: standard normal noise ``[B, ...]``.
          y: known endpoint of a bridge.
          t: start time; default ``t_max``. A smaller one starts at the noise level that
            some one-step students are trained for (SiD's ``sigma_init``).
        """
        t = expand(self.t_max if t is None else t, eps)
        return self.sigma(t) * eps + self._endpoint(self.beta(t), y)


_FAMILIES: dict[type, str] = {
    _EDM: "edm",
    _Linear: "linear",
    _TrigFlow: "trigflow",
    _VP: "vp",
    _VPCosine: "vp",
    _VPScaledLinear: "vp",
}


@words.call
def linear(sigma_d: float = 1.0) -> Path:
    """Linear (rectified-flow) path, velocity target ``eps - x0``."""
    return Path(_Linear(), sigma_d=sigma_d)


@words.call
def vp(beta_start: float = 0.1, beta_end: float = 20.0, sigma_d: float = 1.0) -> Path:
    """Variance-preserving path with linearly growing beta (Song et al. 2021)."""
    return Path(_VP(beta_start, beta_end), t_min=1e-3, sigma_d=sigma_d)


@words.call
def vp_scaled_linear(
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    steps: int = 1000,
    sigma_d: float = 1.0,
) -> Path:
    """The schedule of Stable Diffusion 1 and 2, SDXL and PixArt.

    ``alpha_i^2 = prod_{j <= i} (1 - beta_j)`` with ``sqrt(beta)`` linear from
    ``sqrt(beta_start)`` to ``sqrt(beta_end)``; step ``i = 0 .. steps - 1`` is the time
    ``t = (i + 1) / steps``. Between the steps ``log alpha`` is linear in ``t``, and
    ``t = 0`` is the data. At ``t = 1`` there is still signal, ``alpha = 0.068`` with
    the defaults.

    Args:
      beta_start: first beta.
      beta_end: last beta.
      steps: number of betas.
      sigma_d: standard deviation of the data.

    References:
      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models,
        2022, arXiv:2112.10752.
    """
    if not 0.0 < beta_start <= beta_end < 1.0 or steps < 1:
        raise ValueError(
            "beta_start and beta_end must lie in (0, 1), the first not above the "
            f"second, and steps be at least 1; got {beta_start}, {beta_end}, {steps}"
        )
    schedule = _VPScaledLinear(beta_start, beta_end, steps)
    return Path(schedule, t_min=1.0 / steps, sigma_d=sigma_d)


@words.call
def vp_cosine(offset: float = 0.008, sigma_d: float = 1.0) -> Path:
    """Variance-preserving path with the cosine schedule (Nichol, Dhariwal 2021)."""
    return Path(_VPCosine(offset), t_min=1e-3, sigma_d=sigma_d)


@words.call
def edm(
    sigma_max: float = 80.0, sigma_min: float = 0.002, sigma_d: float = 0.5
) -> Path:
    """Variance-exploding path of EDM; the clock is the noise level sigma."""
    return Path(_EDM(sigma_max), sigma_max, sigma_min, sigma_d)


@words.call
def trigflow(sigma_d: float = 1.0) -> Path:
    """TrigFlow: ``cos t x0 + sigma_d sin t eps``, ``t`` in ``[0, pi/2]``."""
    return Path(_TrigFlow(sigma_d), t_max=0.5 * math.pi, sigma_d=sigma_d)


@words.call
def bridge_linear(q: float, sigma_d: float = 1.0) -> Path:
    """Straight bridge of one-step super-resolution (OFTSR 2024).

    Args:
      q: share of the endpoint that is noise, in ``(0, 1]``.
      sigma_d: standard deviation of the data.
    """
    if not 0.0 < q <= 1.0:
        raise ValueError(f"q must lie in (0, 1], got {q}")
    return Path(_Linear(q), sigma_d=sigma_d)


@words.call
def bridge_residual(kappa: float = 2.0, sigma_d: float = 1.0) -> Path:
    """Residual-shifting bridge (ResShift, Yue et al. 2023); the clock is eta."""
    if kappa <= 0.0:
        raise ValueError(f"kappa must be positive, got {kappa}")
    return Path(_Residual(kappa), t_min=1e-3, sigma_d=sigma_d)
