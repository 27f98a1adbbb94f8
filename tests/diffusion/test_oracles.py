"""Exact teachers against each other, their densities and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import generation, oracles, paths
from distilljax.core.binding import Bound, Network
from distilljax.diffusion.oracles import (
    Gaussian,
    GaussianMixture,
    network,
    prediction,
    ring,
)
from distilljax.diffusion.predictions import KINDS
from tests.exact import PATHS, allclose, gaussian, inner_times, normal

pytestmark = pytest.mark.usefixtures("x64")
NAMES = ("vp", "edm", "trigflow_half")


def mixture():
    return GaussianMixture(
        jnp.array([0.2, 0.5, 0.3]),
        jnp.array([[1.0, 0.0], [-0.5, 0.8], [0.0, -1.0]]),
        jnp.array([0.2, 0.3, 0.1]),
    )


@pytest.fixture(params=NAMES)
def path(request):
    return PATHS[request.param]


@pytest.fixture(params=[gaussian, mixture], ids=["gaussian", "mixture"])
def oracle(request):
    return request.param()


def states(oracle, path):
    t = inner_times(path, 6)
    x0 = oracle.sample(jax.random.key(0), 6)
    return path.noise(x0, normal(1, 6, 2), t), t


def test_the_score_is_the_slope_of_the_log_density(oracle, path):
    x, t = states(oracle, path)
    slope = jax.jit(jax.grad(lambda x: oracle.log_density(x, path, t).sum()))(x)
    allclose(jax.jit(oracle.score(path))(x, t), slope, 1e-10)


def test_all_predictions_belong_together(oracle, path):
    x, t = states(oracle, path)
    te = t[:, None]
    found = jax.jit(lambda x, t: {k: prediction(oracle, path, k)(x, t) for k in KINDS})
    found = found(x, t)
    clean, eps, score = found["x0"], found["eps"], found["score"]
    allclose(path.noise(clean, eps, t), x, 1e-11)
    # Tweedie's formula.
    allclose(clean, (x + path.sigma(te) ** 2 * score) / path.alpha(te), 1e-9)
    allclose(found["velocity"], path.velocity(clean, eps, t), 1e-10)
    for kind in KINDS.values():
        a, b = kind.pair(path, te)
        allclose(found[kind.name], a * clean + b * eps, 1e-9)


def test_fields_are_finite_at_both_ends(oracle, path):
    x, t = normal(0, 2, 2), jnp.array([0.0, path.t_max])
    found = jax.jit(lambda x, t: [prediction(oracle, path, k)(x, t) for k in KINDS])
    assert all(np.all(np.isfinite(out)) for out in found(x, t))
    allclose(jax.jit(oracle.denoised(path))(x, 0.0), x, 1e-10)


def test_the_flow_map_of_a_gaussian_follows_its_velocity(path):
    oracle = gaussian()
    x, t = states(oracle, path)

    @jax.jit
    def run(x, t):
        f, v, s = oracle.flow_map(path), oracle.velocity(path), 0.7 * t
        moved, slope = jax.jvp(lambda s: f(x, t, s), (s,), (jnp.ones_like(s),))
        two, one = f(f(x, t, s), s, 0.3 * t), f(x, t, 0.3 * t)
        return (slope, v(moved, s)), (f(x, t, t), x), (two, one)

    for found, wanted in run(x, t):
        allclose(found, wanted, 1e-10)


def test_the_affine_output_of_a_gaussian_is_exact(path):
    oracle, kinds = gaussian(), ("velocity", "F", "v", "x0")
    x, t = states(oracle, path)

    @jax.jit
    def run(x, t):
        ends = (0.0 * t, 0.5 * t, t)
        exact = oracle.flow_map(path)
        maps = {kind: oracle.affine_map(path, kind) for kind in kinds}
        moved = {
            k: [(f(x, t, s), exact(x, t, s)) for s in ends] for k, f in maps.items()
        }
        own = {
            k: (f.output(x, t, t), prediction(oracle, path, k)(x, t))
            for k, f in maps.items()
        }
        return moved, own

    moved, own = run(x, t)
    for kind in kinds:
        for found, wanted in (*moved[kind], own[kind]):
            allclose(found, wanted, 1e-10)


def test_the_affine_output_keeps_its_digits_near_the_diagonal():
    path, oracle = paths.linear(), gaussian()
    x, t = normal(0, 4, 2), jnp.array([0.9, 0.6, 0.3, 0.1])
    s = t - 1e-6
    single = [leaf.astype(jnp.float32) for leaf in (x, t, s)]
    low = Gaussian(*(leaf.astype(jnp.float32) for leaf in oracle))
    found = jax.jit(low.affine_map(path).output)(*single)
    assert found.dtype == jnp.float32
    wanted = jax.jit(oracle.affine_map(path).output)(x, t, s)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_point_has_a_straight_flow():
    oracle = Gaussian(jnp.array([0.5]), jnp.array([0.0]))
    x, t = normal(0, 4, 1), jnp.array([1.0, 0.7, 0.4, 0.1])
    allclose(oracle.affine_map(paths.linear())(x, t, 0.0), jnp.full((4, 1), 0.5))
    allclose(oracle.flow_map(paths.linear())(x, t, 0.0), jnp.full((4, 1), 0.5))


@pytest.mark.parametrize("name", ["edm", "vp"])
def test_one_component_is_a_gaussian(name):
    path = PATHS[name]
    single = GaussianMixture(jnp.ones(1), jnp.array([[0.7, -0.3]]), jnp.array([0.4]))
    wanted = Gaussian(jnp.array([0.7, -0.3]), jnp.array(0.4))
    x, t = states(single, path)

    @jax.jit
    def run(x, t):
        return [
            [prediction(oracle, path, kind)(x, t) for kind in ("x0", "eps", "velocity")]
            + [oracle.log_density(x, path, t)]
            for oracle in (single, wanted)
        ]

    for a, b in zip(*run(x, t), strict=True):
        allclose(a, b)


def test_densities_integrate_to_one():
    grid = jnp.linspace(-6.0, 6.0, 4001)[:, None]
    cases = (
        Gaussian(jnp.array([0.5]), jnp.array([0.3])),
        GaussianMixture(
            jnp.array([2.0, 6.0]), jnp.array([[1.0], [-1]]), jnp.ones(2) / 5
        ),
    )
    for oracle in cases:
        for where in ((), (paths.linear(), 0.4)):
            mass = jnp.exp(oracle.log_density(grid, *where)).sum() * 12 / 4000
            assert float(mass) == pytest.approx(1.0, abs=1e-6)


def test_marginals_have_the_moments_of_noised_samples(oracle):
    path, t = paths.vp(), 0.35
    marginal = oracle.noised(path, t)
    x, _ = states(oracle, path)
    allclose(marginal.log_density(x), oracle.log_density(x, path, t), 1e-10)
    noised = path.noise(
        oracle.sample(jax.random.key(3), 20_000), normal(4, 20_000, 2), t
    )
    drawn = marginal.sample(jax.random.key(5), 20_000)
    np.testing.assert_allclose(noised.mean(axis=0), drawn.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(noised.std(axis=0), drawn.std(axis=0), rtol=0.03)


@pytest.mark.parametrize("name", ["linear", "edm"])
def test_the_flow_map_of_a_mixture_converges(name):
    path, oracle = PATHS[name], mixture()
    t, s = path.time_of_angle(jnp.array([1.2, 0.4]))
    x = path.noise(oracle.sample(jax.random.key(0), 8), normal(1, 8, 2), t)

    @jax.jit
    def runs(x):
        def run(n):
            return oracle.flow_map(path, steps=n)(x, t, s)

        mid = oracle.flow_map(path, steps=100)(x, t, 0.5 * (t + s))
        two = oracle.flow_map(path, steps=100)(mid, 0.5 * (t + s), s)
        return run(25), run(50), run(200), two

    coarse, fine, wanted, two = runs(x)
    errors = [float(jnp.abs(v - wanted).max()) for v in (coarse, fine)]
    assert errors[1] < 2e-3
    assert errors[1] < 0.35 * errors[0]
    np.testing.assert_allclose(two, wanted, atol=1e-3)
    assert oracle.flow_map(path).path == path


def test_the_flow_map_of_a_mixture_has_the_law_of_the_data():
    path, oracle = paths.edm(), ring()
    start = path.start(normal(0, 1000, 2))
    found = jax.jit(oracle.flow_map(path, steps=64))(start, path.t_max, 0.0)
    fresh = oracle.sample(jax.random.key(1), 1000)
    wanted = float(oracle.log_density(fresh).mean())
    assert float(oracle.log_density(found).mean()) == pytest.approx(wanted, abs=0.12)
    np.testing.assert_allclose(found.std(axis=0), fresh.std(axis=0), rtol=0.08)


@pytest.mark.parametrize("name", ["trigflow_half", "edm"])
def test_an_oracle_stands_in_for_a_network(oracle, name):
    path = PATHS[name]
    x, t = states(oracle, path)
    nets = [network(oracle, path, kind) for kind in KINDS]
    bound = [Bound("teacher", net, net.init(jax.random.key(0))) for net in nets]
    found, wanted = jax.jit(
        lambda x, t: ([b.denoiser()(x, t) for b in bound], oracle.denoised(path)(x, t))
    )(x, t)
    for out in found:
        allclose(out, wanted, 1e-9)


def test_an_oracle_may_be_seen_on_another_path():
    own, on, oracle = PATHS["vp"], PATHS["trigflow_half"], gaussian()
    bound = Bound("teacher", network(oracle, own, "eps"), {})
    x, t = states(oracle, on)
    allclose(bound.velocity(path=on)(x, t), oracle.velocity(on)(x, t), 1e-8)


@pytest.mark.parametrize("kind", ["x0", "velocity", "F"])
def test_an_imperfect_teacher_of_any_kind_samples_to_the_data_end(kind):
    """An error of the network must not be divided by the noise level at t = 0."""
    path, oracle = paths.linear(), ring()
    net = network(oracle, path, kind)

    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        return 1.01 * net.apply(params, x, t)

    worse = Network("worse", apply, net.init, path, kind)
    run = jax.jit(generation.teacher_sampler(worse, 20))
    found = run({}, normal(0, 100, 2), None, jax.random.key(0))
    assert np.abs(found).max() < 2.0


@pytest.mark.parametrize("name", NAMES)
def test_a_two_time_oracle_is_the_exact_student(name):
    path, oracle = PATHS[name], gaussian()
    bound = Bound("student", network(oracle, path, "F", two_time=True), {})
    x, t = states(oracle, path)
    wanted = oracle.flow_map(path)(x, t, 0.4 * t)
    allclose(bound.flow_map()(x, t, 0.4 * t), wanted, 1e-9)
    allclose(bound.denoiser()(x, t), oracle.denoised(path)(x, t), 1e-9)
    with pytest.raises(ValueError, match="two_time needs a Gaussian"):
        network(mixture(), path, two_time=True)


def test_a_ring():
    oracle = ring(5, radius=2.0, std=0.1)
    allclose(jnp.linalg.norm(oracle.means, axis=1), jnp.full(5, 2.0))
    x = oracle.sample(jax.random.key(0), 5000)
    assert float(jnp.linalg.norm(x, axis=1).mean()) == pytest.approx(2.0, abs=0.01)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        ring(0)


def test_oracles_compute_in_the_type_of_the_state(oracle):
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), oracle)
    x = normal(0, 3, 2).astype(jnp.float32)
    for kind in KINDS:
        out = jax.eval_shape(
            lambda x, k=kind: prediction(single, paths.vp(), k)(x, 0.5), x
        )
        assert out.dtype == jnp.float32
    assert jax.eval_shape(single.log_density, x).dtype == jnp.float32
    assert single.sample(jax.random.key(0), 3).dtype == jnp.float32
    assert oracles.ring().means.dtype == jnp.float64


def test_the_log_joint_says_which_component_a_sample_is_from():
    mixture = GaussianMixture(
        jnp.array([0.2, 0.8]), jnp.array([[-3.0, 0.0], [3.0, 0.0]]), jnp.array([0.5, 1])
    )
    x = mixture.sample(jax.random.key(0), 4096)
    joint = mixture.log_joint(x)
    np.testing.assert_allclose(
        jax.nn.logsumexp(joint, axis=1), mixture.log_density(x), rtol=1e-5, atol=1e-5
    )
    share = jax.nn.softmax(joint, axis=1)
    np.testing.assert_allclose(share.mean(0), [0.2, 0.8], atol=0.02)
    assert (share.argmax(1) == (x[:, 0] > 0)).mean() > 0.99
