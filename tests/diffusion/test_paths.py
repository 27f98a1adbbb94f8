"""Forward paths: coefficients, clocks and steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilljax import paths
from distilljax.diffusion.paths import expand
from tests.exact import BRIDGES, PATHS, allclose, inner_times, normal

pytestmark = pytest.mark.usefixtures("x64")
ALL = {**PATHS, **BRIDGES}
# alphas_cumprod of Stable Diffusion's scheduler at the timesteps 199 and 699.
STABLE_DIFFUSION = {0.2: 0.7552383611581192, 0.7: 0.0831283308658812}


@pytest.fixture(params=sorted(PATHS))
def path(request):
    return PATHS[request.param]


@pytest.fixture(params=sorted(ALL))
def any_path(request):
    return ALL[request.param]


@pytest.mark.parametrize(
    ("path", "alpha", "sigma"),
    [
        (paths.linear(), lambda t: 1 - t, lambda t: t),
        (paths.edm(), lambda t: 1.0, lambda t: t),
        (paths.trigflow(0.5), math.cos, lambda t: 0.5 * math.sin(t)),
        (
            paths.vp(0.1, 20.0),
            lambda t: math.exp(-0.5 * (0.1 * t + 9.95 * t**2)),
            lambda t: math.sqrt(1 - math.exp(-(0.1 * t + 9.95 * t**2))),
        ),
        (
            paths.vp_cosine(0.0),
            lambda t: math.cos(math.pi * t / 2),
            lambda t: math.sin(math.pi * t / 2),
        ),
        (
            paths.vp_scaled_linear(),
            lambda t: STABLE_DIFFUSION[t] ** 0.5,
            lambda t: (1 - STABLE_DIFFUSION[t]) ** 0.5,
        ),
        (paths.bridge_linear(0.4), lambda t: 1 - t, lambda t: 0.4 * t),
        (paths.bridge_residual(2.0), lambda t: 1 - t, lambda t: 2 * math.sqrt(t)),
    ],
)
def test_coefficients_are_the_published_ones(path, alpha, sigma):
    for t in (0.2, 0.7):
        allclose(path.alpha(jnp.asarray(t)), alpha(t))
        allclose(path.sigma(jnp.asarray(t)), sigma(t))


def test_a_bridge_starts_at_its_endpoint():
    y, eps = normal(0, 3, 2), normal(1, 3, 2)
    allclose(
        paths.bridge_linear(0.4).start(eps, y), math.sqrt(1 - 0.16) * y + 0.4 * eps
    )
    allclose(paths.bridge_residual(2.0).start(eps, y), y + 2.0 * eps)


def test_data_sits_at_zero_and_noise_at_the_end(path):
    x0, eps = normal(0, 3, 2), normal(1, 3, 2)
    allclose(path.noise(x0, eps, 0.0), x0)
    end = jnp.asarray(path.t_max)
    share = path.alpha(end) * path.sigma_d / path.sigma(end)
    assert 0.0 <= float(share) < 0.01
    allclose(path.start(eps), path.sigma(end) * eps)
    allclose(path.start(eps, t=0.3), path.sigma(jnp.asarray(0.3)) * eps)


def test_derivatives_match_finite_differences(any_path):
    t, h = inner_times(any_path), 1e-6
    for fn, dot in (
        (any_path.alpha, any_path.alpha_dot),
        (any_path.beta, any_path.beta_dot),
        (any_path.sigma, any_path.sigma_dot),
    ):
        allclose(dot(t), (fn(t + h) - fn(t - h)) / (2 * h), 1e-7)


def test_derivatives_are_finite_at_both_ends(any_path):
    ends = jnp.array([0.0, any_path.t_max])
    for dot in (any_path.alpha_dot, any_path.beta_dot, any_path.sigma_dot):
        assert np.all(np.isfinite(dot(ends)))


def test_conditional_velocity_is_the_derivative_of_the_state(any_path):
    x0, eps, y = normal(0, 5, 2), normal(1, 5, 2), normal(2, 5, 2)
    y = y if any_path.bridges else None
    t = inner_times(any_path)
    _, slope = jax.jvp(
        lambda u: any_path.noise(x0, eps, u, y), (t,), (jnp.ones_like(t),)
    )
    allclose(any_path.velocity(x0, eps, t, y), slope)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(ALL)), share=st.floats(0.0, 1.0))
def test_the_noise_angle_has_an_inverse(name, share):
    path = ALL[name]
    t = jnp.asarray(share * path.t_max)
    back = path.time_of_angle(path.angle(t))
    # On VE and at alpha = 0 the angle itself is only so well conditioned.
    np.testing.assert_allclose(back, t, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", ["vp", "vp_cosine"])
def test_float32_keeps_its_digits_at_the_data_end(name):
    path = PATHS[name]
    angle = jnp.array([0.01, 0.03, 0.1, 0.5, 0.9])
    single = path.time_of_angle(angle.astype(jnp.float32))
    np.testing.assert_allclose(single, path.time_of_angle(angle), rtol=1e-5)
    back = path.sigma(single)
    assert back.dtype == jnp.float32
    np.testing.assert_allclose(back, jnp.sin(angle), rtol=1e-5)


def test_time_of_log_snr_is_total(any_path):
    t = inner_times(any_path)
    allclose(any_path.time_of(any_path.log_snr(t)), t, 1e-10)
    clean, noisy = any_path.time_of(jnp.array([jnp.inf, -jnp.inf]))
    assert float(clean) == pytest.approx(0.0, abs=1e-9)
    assert float(noisy) == pytest.approx(any_path.t_max, rel=1e-9)


def test_scale_is_the_spread_of_the_state(path):
    t = inner_times(path)
    wanted = (path.alpha(t) * path.sigma_d) ** 2 + path.sigma(t) ** 2
    allclose(path.scale(t) ** 2, wanted)


def test_times_align_from_the_left():
    x = jnp.zeros((2, 3, 4, 5))
    assert expand(0.5, x).shape == (1, 1, 1, 1)
    assert expand(jnp.zeros(2), x).shape == (2, 1, 1, 1)
    assert expand(jnp.zeros((2, 3)), x).shape == (2, 3, 1, 1)
    assert expand(jnp.zeros((1, 3)), x).shape == (1, 3, 1, 1)
    assert expand(1, x.astype(jnp.float32)).dtype == jnp.float32
    assert expand(0.5, x.astype(jnp.bfloat16)).dtype == jnp.float32
    assert expand(jnp.zeros(2, jnp.bfloat16), x).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"leading axes of x \(2, 3, 4, 5\).*\(3,\)"):
        expand(jnp.zeros(3), x)
    with pytest.raises(ValueError, match="leading axes"):
        expand(jnp.zeros((2, 3)), jnp.zeros(2))


def test_times_per_frame_act_per_frame(path):
    x0, eps = normal(0, 2, 3, 4), normal(1, 2, 3, 4)
    t = path.time_of_angle(jnp.linspace(0.1, 1.0, 6).reshape(2, 3))
    frames = [path.noise(x0[:, i], eps[:, i], t[:, i]) for i in range(3)]
    allclose(path.noise(x0, eps, t), jnp.stack(frames, axis=1))


def test_renoising_reaches_the_marginal(path):
    s, t = inner_times(path, 2)
    one = jnp.ones((1, 1))
    clean, _ = path.renoise_from(path.alpha(s) * one, s, t, 0 * one)
    fresh, _ = path.renoise_from(0 * one, s, t, one)
    kept, _ = path.renoise_from(path.sigma(s) * one, s, t, 0 * one)
    allclose(clean, path.alpha(t) * one)
    allclose(fresh**2 + kept**2, path.sigma(t) ** 2 * one)


def test_renoising_gives_its_denoiser_target(path):
    x_s, eps = normal(0, 4, 2), normal(1, 4, 2)
    s, t = inner_times(path, 2)
    x_t, target = path.renoise_from(x_s, s, t, eps)
    ratio = path.alpha(t) / path.alpha(s)
    std = jnp.sqrt(path.sigma(t) ** 2 - (ratio * path.sigma(s)) ** 2)
    wanted = (x_t - path.sigma(t) ** 2 / std * eps) / path.alpha(t)
    allclose(target, wanted, 1e-9)
    _, target = path.renoise_from(x_s, 0.0, t, eps)
    allclose(target, x_s)


def test_a_jump_with_the_true_data_stays_on_its_line(any_path):
    x0, eps, y = normal(0, 4, 2), normal(1, 4, 2), normal(2, 4, 2)
    y = y if any_path.bridges else None
    s, t = inner_times(any_path, 2)
    x_t = any_path.noise(x0, eps, t, y)
    allclose(any_path.jump(x0, x_t, t, s, y), any_path.noise(x0, eps, s, y), 1e-11)
    allclose(any_path.jump(x0, x_t, t, 0.0, y), x0, 1e-11)


def test_a_jump_can_be_inverted(path):
    denoised, x = normal(0, 4, 2), normal(1, 4, 2)
    s, t = inner_times(path, 2)
    x_s = path.jump(denoised, x, t, s)
    allclose(path.invert_jump(x_s, x, s, t), denoised, 1e-10)


def test_a_step_keeps_the_marginal_whatever_its_noise(path):
    s, t = inner_times(path, 2)
    x0, e, xi = (jnp.array([v]) for v in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]))
    x_t = path.noise(x0, e, t)
    for share in (0.3, 1.0):
        out = path.step(x_t, x0, t, s, zeta=share * path.sigma(s), xi=xi)[0]
        allclose(out[0], path.alpha(s))
        allclose(out[1] ** 2 + out[2] ** 2, path.sigma(s) ** 2)


def test_a_step_with_residual_noise_is_the_posterior():
    path, kappa = paths.bridge_residual(2.0), 2.0
    x0, y, x_t, xi = (normal(i, 3, 2) for i in range(4))
    t, s = 0.8, 0.3
    std = kappa * math.sqrt(s * (t - s) / t)
    wanted = (s / t) * x_t + (1 - s / t) * x0 + std * xi
    allclose(path.step(x_t, x0, t, s, y, std, xi), wanted)


def test_a_bridge_wants_its_endpoint():
    path = paths.bridge_linear(0.5)
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="y must be given on a bridge"):
        path.noise(x, x, 0.5)
    allclose(path.strip(x + 1.0, 1.0, x + 1.0), (1 - math.sqrt(0.75)) * (x + 1.0))
    assert path.bridges
    assert not paths.bridge_linear(1.0).bridges


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: paths.bridge_linear(0.0), "q must lie in"),
        (lambda: paths.bridge_linear(1.5), "q must lie in"),
        (lambda: paths.bridge_residual(0.0), "kappa must be positive"),
    ],
)
def test_impossible_bridges_are_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_paths_are_values():
    assert paths.linear() == paths.linear()
    assert paths.linear(0.5) != paths.linear()
    assert paths.edm(80.0) != paths.edm(40.0)
    assert len({paths.trigflow(), paths.trigflow(1.0), paths.vp()}) == 2


def test_stable_diffusions_clock_is_inverted_between_and_at_its_steps():
    path = paths.vp_scaled_linear()
    t = jnp.asarray([0.0, 0.0005, 0.001, 0.2, 0.6257, 1.0])
    allclose(path.time_of_angle(path.angle(t)), t, 1e-9)
    allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, jnp.ones(6))
    # SiD-LSG's first timestep is SiD's sigma_init.
    ratio = path.sigma(jnp.asarray(0.626)) / path.alpha(jnp.asarray(0.626))
    assert float(ratio) == pytest.approx(2.5, rel=1e-3)
    inner = jnp.asarray([0.2505, 0.9005])
    step = 1e-5
    slope = (path.alpha(inner + step) - path.alpha(inner - step)) / (2 * step)
    allclose(path.alpha_dot(inner), slope, 1e-6)


@pytest.mark.parametrize(("start", "end", "steps"), [(0.0, 0.1, 9), (0.1, 0.2, 0)])
def test_a_schedule_without_noise_or_steps_is_refused(start, end, steps):
    with pytest.raises(ValueError, match="beta_start and beta_end"):
        paths.vp_scaled_linear(start, end, steps)
