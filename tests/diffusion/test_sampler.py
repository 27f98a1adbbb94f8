"""Few-step samplers: rules of re-noising, hooks and refused input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import paths, sampling, solvers
from distilljax.diffusion.flow_maps import AffineFlowMap
from distilljax.diffusion.oracles import prediction
from distilljax.diffusion.predictions import X0, F
from distilljax.diffusion.sampler import (
    SDE,
    Consistency,
    Deterministic,
    Gamma,
    Hooks,
    HopFirst,
    sample,
)
from tests.exact import PATHS, allclose, gaussian, normal

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(7)
RULES = (Deterministic(), Consistency(), Gamma(0.5), SDE(1.0), HopFirst())
NAMES = ("linear", "vp", "edm", "trigflow_half")


def name_of(value):
    return type(value).__name__


def exact(path):
    return gaussian().flow_map(path)


def denoiser_map(path):
    """The student that jumps along the exact denoiser."""
    denoised = prediction(gaussian(), path, "x0")
    return AffineFlowMap(lambda x, t, s: denoised(x, t), path, X0)


def grid(path, *shares):
    """Times at shares of the noise angle, then 0."""
    top = path.angle(jnp.asarray(path.t_max))
    inner = [float(path.time_of_angle(u * top)) for u in shares]
    return (path.t_max, *inner, 0.0)


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_one_step_is_the_map_itself(rule):
    path = PATHS["trigflow_half"]
    x = path.start(normal(0, 4, 2))
    wanted = exact(path)(x, path.t_max, 0.0)
    allclose(sample(exact(path), x, grid(path), renoise=rule), wanted)
    allclose(sample(exact(path), x, grid(path), renoise=rule, key=KEY), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_deterministic_chain_of_the_exact_map_is_one_jump(name):
    path = PATHS[name]
    x = path.start(normal(0, 4, 2))
    found = sample(exact(path), x, grid(path, 0.9, 0.5, 0.2), renoise=Deterministic())
    allclose(found, exact(path)(x, path.t_max, 0.0), 1e-10)


@pytest.mark.parametrize("rule", RULES[1:3], ids=name_of)
@pytest.mark.parametrize("name", NAMES)
def test_re_noising_the_exact_map_keeps_the_law_of_the_data(name, rule):
    path, oracle, n = PATHS[name], gaussian(), 20_000
    end = oracle.noised(path, path.t_max)
    start = end.mean + end.std * normal(0, n, 2)
    times = grid(path, 0.8, 0.4)

    @jax.jit
    def run(x):
        return sample(exact(path), x, times, renoise=rule, key=KEY)

    found = run(start)
    np.testing.assert_allclose(found.mean(axis=0), oracle.mean, atol=0.02)
    np.testing.assert_allclose(found.std(axis=0), oracle.std, rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_gamma_joins_the_deterministic_rule_and_full_re_noising(name):
    path = PATHS[name]
    x, times = path.start(normal(0, 4, 2)), grid(path, 0.8, 0.4)

    rules = (Gamma(0.0), Gamma(0.5), Gamma(1.0), Deterministic(), Consistency())

    @jax.jit
    def run(x):
        return [sample(exact(path), x, times, renoise=rule, key=KEY) for rule in rules]

    low, half, high, deterministic, consistency = run(x)
    allclose(low, deterministic, 1e-9)
    # On EDM the map ends at 0.002, and as much less noise is added.
    np.testing.assert_allclose(high, consistency, atol=1e-9 + 5.0 * path.boundary)
    assert np.abs(half - low).max() > 1e-3
    assert np.abs(half - high).max() > 1e-3


def test_gamma_reaches_its_level_with_the_published_noise():
    path, x, gamma = paths.edm(), normal(0, 4, 2), 0.6
    t, s, eps = jnp.asarray(5.0), jnp.asarray(2.0), normal(1, 4, 2)
    found = Gamma(gamma)(exact(path), path, x, t, s, eps)
    below = 0.002 + np.sqrt(1 - gamma**2) * (2.0 - 0.002)
    noise = np.sqrt(4.0 - below**2) * eps
    allclose(found, exact(path)(x, t, below) + noise, 1e-10)
    at_end = Gamma(gamma)(exact(path), path, x, t, jnp.asarray(0.002), eps)
    allclose(at_end, exact(path)(x, t, 0.002), 1e-6)


def test_re_noising_starts_where_a_consistency_model_ends():
    path, x, eps = paths.edm(), normal(0, 4, 2), normal(1, 4, 2)

    def output(x, t, s):
        return jnp.zeros_like(x)

    f = AffineFlowMap(output, path, F, path.boundary)
    t, s = jnp.asarray(5.0), jnp.asarray(0.8)
    noise = np.sqrt(0.8**2 - 0.002**2) * eps
    allclose(Consistency()(f, path, x, t, s, eps), f(x, t, 0.0) + noise, 1e-10)
    end = jnp.asarray(0.0)
    allclose(Consistency()(f, path, x, t, end, eps), f(x, t, 0.0), 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_sde_rule_is_ddim_without_noise_and_the_solver_with_it(name):
    path = PATHS[name]
    x, times = path.start(normal(0, 4, 2)), grid(path, 0.8, 0.4)
    f, denoised = denoiser_map(path), prediction(gaussian(), path, "x0")

    @jax.jit
    def run(x):
        def solved(solver):
            return solvers.solve(
                denoised, x, times, path=path, solver=solver, kind="x0", key=KEY
            )

        quiet = sample(f, x, times, renoise=SDE(0.0), key=KEY)
        straight = sample(f, x, times, renoise=Deterministic())
        noisy = sample(f, x, times, renoise=SDE(0.7), key=KEY)
        return quiet, straight, noisy, solved(solvers.DDIM()), solved(solvers.SDE(0.7))

    quiet, straight, noisy, ddim, sde = run(x)
    allclose(quiet, ddim, 1e-10)
    allclose(quiet, straight, 1e-10)
    allclose(noisy, sde, 1e-10)
    assert np.abs(noisy - quiet).max() > 1e-2


def test_noise_is_fresh_in_every_step_and_follows_the_key():
    path = paths.trigflow()
    f = AffineFlowMap(lambda x, t, s: 0 * x, path, X0)
    x, times = path.start(normal(0, 4, 2)), grid(path, 0.8, 0.4)
    end, states = sample(f, x, times, key=KEY, trajectory=True)
    assert states.shape == (3, 4, 2)
    allclose(end, states[-1])
    first = states[0] / path.sigma(jnp.asarray(times[1]))
    second = states[1] / path.sigma(jnp.asarray(times[2]))
    assert np.abs(first - second).min() > 1e-3
    other = sample(f, x, times, key=jax.random.key(8), trajectory=True)[1]
    assert np.abs(other[0] - states[0]).min() > 1e-3


@pytest.mark.parametrize("steps", [4, 20])
def test_sampling_is_one_program(steps):
    chex.clear_trace_counter()
    path = paths.linear()
    times = tuple(float(t) for t in np.linspace(1.0, 0.0, steps + 1))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(x, key):
        return sample(exact(path), x, times, key=key)

    for seed in range(3):
        run(normal(seed, 4, 2), jax.random.key(seed))
    text = str(jax.make_jaxpr(run)(normal(0, 4, 2), KEY))
    # The steps that add noise and the last one, which does not.
    assert text.count("scan[") == 2
    assert text.count("random_bits") == 1
    assert "callback" not in text


def test_hooks_start_project_and_guide():
    path = paths.linear()
    f = AffineFlowMap(lambda x, t, s: 0 * x, path)

    def guide(inner, index):
        return lambda x, t, s: inner(x, t, s) + 10.0 ** (-index)

    def project(x, s, index, carry):
        return jnp.where(s == 0.0, x, 2.0 * x), carry + 1.0

    hooks = Hooks(lambda x: x + 1.0, project, guide, jnp.zeros(()))
    found = sample(
        f, jnp.zeros((1, 1)), (1.0, 0.5, 0.0), renoise=Deterministic(), hooks=hooks
    )
    # ((0 + 1) + 1) * 2 + 0.1
    allclose(found, jnp.array([[4.1]]))


def test_the_carry_of_a_projection_runs_along():
    path = paths.linear()
    f = AffineFlowMap(lambda x, t, s: 0 * x, path)
    hooks = Hooks(
        project=lambda x, s, i, seen: (x + seen, seen + 1.0), carry=jnp.ones(())
    )
    found = sample(
        f, jnp.zeros((1, 1)), (1.0, 0.6, 0.3, 0.0), renoise=Deterministic(), hooks=hooks
    )
    allclose(found, jnp.array([[1.0 + 2.0 + 3.0]]))


def test_a_map_per_step():
    path = paths.linear()

    def adds(value):
        return lambda x, t, s: x + value

    found = sample(
        [adds(1.0), adds(10.0)],
        jnp.zeros((1, 1)),
        (1.0, 0.5, 0.0),
        path=path,
        renoise=Deterministic(),
    )
    allclose(found, jnp.array([[11.0]]))


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_half_precision_states_become_float32(rule):
    f = AffineFlowMap(lambda x, t, s: x.astype(jnp.bfloat16), paths.linear())
    x = normal(0, 2, 2).astype(jnp.bfloat16)
    found = sample(f, x, (1.0, 0.5, 0.0), renoise=rule, key=KEY)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda f, x: sample(f, x, (1.0, 0.5, 0.7, 0.0), key=KEY), "decrease strictly"),
        (lambda f, x: sample(f, x, (0.0, 1.0), key=KEY), "decrease strictly"),
        (lambda f, x: sample(f, x, (1.0,), key=KEY), "0 steps"),
        (lambda f, x: sample(f, x, (1.0, 0.5, 0.0)), "Consistency.*1 of 2.*pass key="),
        (lambda f, x: sample(f, x, (1.0, 0.5)), "Consistency.*1 of 1.*pass key="),
        (lambda f, x: sample([f], x, (1.0, 0.5, 0.0), key=KEY), "2 steps, got 1 maps"),
        (lambda f, x: sample(lambda x, t, s: x, x, (1.0, 0.0)), "path must be given"),
        (lambda f, x: Gamma(1.5), "gamma must lie in"),
        (lambda f, x: SDE(-0.1), "eta must lie in"),
    ],
)
def test_bad_input_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call(exact(paths.linear()), jnp.zeros((1, 2)))


def test_rules_are_values():
    assert sampling.Consistency() == Consistency()
    assert Gamma(0.5) != Gamma(0.4)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_hop_is_a_jump_and_later_steps_re_noise(name):
    path, f = PATHS[name], exact(PATHS[name])
    x, times = path.start(normal(0, 4, 2)), grid(path, 0.8, 0.4)
    two = sample(f, x, (*times[:2], 0.0), renoise=HopFirst(), key=KEY)
    allclose(two, f(x, path.t_max, 0.0), 1e-10)
    _, states = sample(f, x, times, renoise=HopFirst(), key=KEY, trajectory=True)
    allclose(states[0], f(x, path.t_max, times[1]), 1e-10)
    eps = jax.random.normal(jax.random.fold_in(KEY, 1), x.shape, x.dtype)
    noised = path.noise(f(states[0], times[1], 0.0), eps, times[2])
    allclose(states[1], noised, 1e-10)
    allclose(states[2], f(states[1], times[2], 0.0), 1e-10)
