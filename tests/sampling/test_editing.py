"""Edits by hooks, and inversion, against exact Gaussian and mixture flow maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import editing, paths
from distilljax.diffusion.oracles import Gaussian, GaussianMixture, prediction
from distilljax.diffusion.sampler import SDE, Consistency, Deterministic, Hooks, sample
from distilljax.diffusion.solvers import FireFlow, Midpoint, solve
from distilljax.diffusion.times import AngleGrid, EvenGrid
from tests.exact import PATHS, allclose, gaussian, normal

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(5)
SHAPE = (3, 8, 8, 3)
MAPS = {
    "pixels": editing.pixels(np.arange(64).reshape(8, 8, 1) % 3),
    "luminance": editing.luminance(),
    "patch_means_2": editing.patch_means(2),
    "patch_means_4": editing.patch_means(4),
}


def image_map(path):
    """The flow map of pictures whose pixels are Gaussian, within [-1, 1] mostly."""
    return Gaussian(jnp.zeros(SHAPE[1:]), jnp.full(SHAPE[1:], 0.4)).flow_map(path)


def run(path, hooks, x, steps=3, **options):
    return sample(
        options.pop("flow_map", image_map(path)),
        x,
        AngleGrid()(steps, path),
        path=path,
        key=KEY,
        hooks=hooks,
        **options,
    )


def pictures(seed=0):
    return jnp.clip(0.4 * normal(seed, *SHAPE), -1.0, 1.0)


@pytest.mark.parametrize("name", MAPS)
def test_the_coordinates_are_orthogonal_and_known_ones_come_from_y(name):
    m, x, y = MAPS[name], pictures(0), pictures(1)
    allclose(m.inverse(m.forward(x)), x, 1e-13)
    allclose(jnp.sum(m.forward(x) * m.forward(y)), jnp.sum(x * y), 1e-13)
    z = normal(2, *m.forward(x).shape)
    allclose(m.forward(m.inverse(z)), z, 1e-13)
    mixed = m.forward(m.mix(y, x))
    known = jnp.broadcast_to(m.known, mixed.shape)
    assert 0 < known.sum() < known.size
    allclose(mixed[known], m.forward(y)[known], 1e-13)
    allclose(mixed[~known], m.forward(x)[~known], 1e-13)


def test_the_first_coordinates_are_luminance_and_mean():
    x = pictures()
    first = editing.luminance().forward(x)[..., :1]
    allclose(first * np.linalg.norm(editing.LUMA), editing.grey(x), 1e-13)
    allclose(
        editing.grey(x), 0.2989 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    )
    means = x.reshape(3, 2, 4, 2, 4, 3).mean(axis=(2, 4))
    allclose(editing.shrink(x, 4), means, 1e-13)
    videos = jnp.stack([x, -x])
    allclose(editing.shrink(videos, 4)[1], -means, 1e-13)


def test_what_was_observed_is_kept_exactly():
    path, y = PATHS["trigflow_half"], pictures(1)
    x = path.start(normal(2, *SHAPE))
    hole = jnp.zeros((8, 8, 1)).at[2:6, 3:].set(1)
    edits = {
        "nothing": editing.inpaint(y, jnp.zeros((8, 8, 1))),
        "hole": editing.inpaint(y, hole),
        "colour": editing.colourise(editing.grey(y)),
        "large": editing.super_resolve(editing.shrink(y, 4), 4),
    }
    found = jax.jit(lambda x: {k: run(path, e, x, 2) for k, e in edits.items()})(x)
    np.testing.assert_array_equal(found["nothing"], y)
    np.testing.assert_array_equal(jnp.where(hole, y, found["hole"]), y)
    assert np.abs(found["hole"] - y)[:, 2:6, 3:].mean() > 0.1
    allclose(editing.grey(found["colour"]), editing.grey(y), 1e-12)
    allclose(editing.shrink(found["large"], 4), editing.shrink(y, 4), 1e-12)


def test_two_steps_are_the_published_loop():
    """Clip, mix, then noise; nothing is clipped after the mixing."""
    path, y, x = PATHS["edm"], 0.9 * pictures(1), 80.0 * normal(2, *SHAPE)
    m = MAPS["patch_means_2"]
    f = Gaussian(jnp.zeros(SHAPE[1:]), jnp.ones(SHAPE[1:])).flow_map(path)
    times = AngleGrid()(2, path)
    clean = m.mix(y, jnp.clip(f(x, times[0], 0.0), -1.0, 1.0))
    noise = jax.random.normal(jax.random.fold_in(KEY, 0), SHAPE, x.dtype)
    clean = m.mix(y, jnp.clip(f(clean + times[1] * noise, times[1], 0.0), -1.0, 1.0))
    assert np.abs(clean).max() > 1.0
    hooks = editing.super_resolve(editing.shrink(y, 2), 2)
    allclose(run(path, hooks, x, 2, flow_map=f), clean, 1e-10)


def test_under_jit_it_is_the_same_and_costs_one_evaluation_a_step():
    path, y = paths.trigflow(), pictures(1)
    calls = []

    def flow_map(x, t, s):
        jax.debug.callback(lambda: calls.append(1))
        return image_map(path)(x, t, s)

    def edited(x):
        hooks = editing.inpaint(y, jnp.eye(8)[..., None])
        return run(path, hooks, x, 3, flow_map=flow_map)

    x = path.start(normal(2, *SHAPE))
    eager = edited(x)
    jax.effects_barrier()
    assert len(calls) == 3
    allclose(jax.jit(edited)(x), eager, 1e-12)


@pytest.mark.parametrize("name", ["linear", "vp"])
def test_of_independent_pixels_the_hole_has_the_law_of_the_data(name):
    path, oracle, n = PATHS[name], gaussian(), 20_000
    end = oracle.noised(path, path.t_max)
    x = end.mean + end.std * normal(0, n, 2)
    hooks = editing.inpaint(jnp.full((n, 2), 3.0), jnp.array([0, 1]), clip=None)
    found = jax.jit(lambda x: run(path, hooks, x, flow_map=oracle.flow_map(path)))(x)
    np.testing.assert_array_equal(found[:, 0], 3.0)
    np.testing.assert_allclose(found[:, 1].mean(), oracle.mean[1], atol=0.01)
    np.testing.assert_allclose(found[:, 1].std(), oracle.std[1], rtol=0.02)


def test_a_known_pixel_decides_the_component_of_a_mixture():
    """Means (1, -1) and (-1, 1): the sign of one pixel gives the other's."""
    path, n, std = paths.trigflow(), 1000, 0.2
    means = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    law = GaussianMixture(jnp.ones(2), means, jnp.full(2, std))
    f = law.flow_map(path, steps=12)
    seen = jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0)
    hooks = editing.inpaint(jnp.stack([seen, seen], -1), jnp.array([0, 1]), clip=None)

    @jax.jit
    def edited(x):
        return [seen * run(path, hooks, x, k, flow_map=f)[:, 1] for k in (1, 24)]

    found = edited(path.start(normal(0, n, 2)))
    once, often = (float(np.mean(x < 0)) for x in found)
    # One step does not look at the observation; a first guess is mended later.
    assert 0.45 < once < 0.55
    assert often > 0.99
    filled = found[-1][found[-1] < 0]
    np.testing.assert_allclose(filled.mean(), -1.0, atol=0.03)
    np.testing.assert_allclose(filled.std(), std, rtol=0.1)


def test_states_between_are_left_to_the_rule():
    path, y = paths.linear(), pictures(1)
    x, times = path.start(normal(2, *SHAPE)), (1.0, 0.5, 0.0)
    hooks = editing.inpaint(y, jnp.zeros((8, 8, 1)))
    end, states = sample(
        image_map(path), x, times, renoise=Deterministic(), hooks=hooks, trajectory=True
    )
    allclose(states[0], image_map(path)(x, 1.0, 0.5))
    np.testing.assert_array_equal(end, y)
    for rule in (Consistency(), SDE(0.5)):
        end = sample(image_map(path), x, times, renoise=rule, hooks=hooks, key=KEY)
        np.testing.assert_array_equal(end, y)


def test_denoising_one_step_is_the_map_at_the_level_of_the_noise():
    path, oracle, std, n = PATHS["vp"], gaussian(), 0.6, 20_000
    t = editing.level(path, std)
    ratio = path.sigma(t) / path.alpha(jnp.asarray(t))
    np.testing.assert_allclose(ratio, std, rtol=1e-6)
    clean = oracle.sample(KEY, n)
    noisy = clean + std * normal(1, n, 2)
    hooks = editing.denoise(noisy, t, path)
    f = oracle.flow_map(path)
    found = sample(f, jnp.zeros_like(noisy), (t, 0.0), path=path, hooks=hooks)
    allclose(found, f(path.alpha(jnp.asarray(t)) * noisy, t, 0.0))
    np.testing.assert_allclose(found.mean(axis=0), oracle.mean, atol=0.02)
    np.testing.assert_allclose(found.std(axis=0), oracle.std, rtol=0.02)


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_a_stroke_starts_between_picture_and_noise(name):
    path, y, eps = PATHS[name], pictures(1), normal(2, *SHAPE)
    stay = editing.stroke(y, 0.0, path).start
    np.testing.assert_array_equal(stay(path.start(eps, t=0.0)), y)
    times = AngleGrid(0.4)(2, path)
    begun = editing.stroke(y, times[0], path).start(path.start(eps, t=times[0]))
    allclose(begun, path.noise(y, eps, times[0]))
    faint = AngleGrid(1e-4)(1, path)
    hooks = editing.stroke(y, faint[0], path)
    found = sample(
        image_map(path), path.start(eps, t=faint[0]), faint, path=path, hooks=hooks
    )
    np.testing.assert_allclose(found, y, atol=2e-3)


def test_interpolation_ends_at_both_samples():
    path = paths.trigflow()
    a, b = path.start(normal(0, *SHAPE)), path.start(normal(1, *SHAPE))
    wanted = [run(path, Hooks(), x, 1) for x in (a, b)]
    for share, end in zip((0.0, 1.0), wanted, strict=True):
        allclose(run(path, editing.interpolate(b, share), a, 1), end, 1e-12)
    shares = jnp.array([0.0, 0.5, 1.0])
    mixed = editing.slerp(a, b, shares)
    allclose(mixed[0], a[0])
    allclose(mixed[2], b[2])
    mean = (a[1] + b[1]) / 2
    # Half way both have one weight; of unit vectors the norm stays 1.
    allclose(mixed[1] / jnp.linalg.norm(mixed[1]), mean / jnp.linalg.norm(mean))
    u, v = (x[1:2] / jnp.linalg.norm(x[1]) for x in (a, b))
    allclose(jnp.linalg.norm(editing.slerp(u, v, 0.3)), 1.0)
    allclose(editing.slerp(a, 2.0 * a, 0.25), 1.25 * a, 1e-6)
    assert np.all(np.isfinite(editing.slerp(a, -a, 0.5)))


@pytest.mark.parametrize(
    ("name", "solver"),
    [("edm", FireFlow()), ("linear", Midpoint())],
)
def test_inversion_finds_the_noise_and_the_way_back(name, solver):
    path, oracle = PATHS[name], gaussian()
    x0, field = oracle.sample(KEY, 64), prediction(gaussian(), path, "velocity")
    end = oracle.flow_map(path)(x0, 0.0, path.t_max)
    wanted = end / path.sigma(jnp.asarray(path.t_max))
    counts, errors = (16, 64), []
    for n in counts:
        times = AngleGrid()(n, path) if name == "edm" else EvenGrid()(n, path)

        @jax.jit
        def both(x0, times=times):
            eps = editing.invert(field, x0, times, path=path, solver=solver)
            x = path.start(eps, t=times[0])
            return eps, solve(field, x, times, path=path, solver=solver)

        eps, again = both(x0)
        errors.append(float(jnp.abs(again - x0).max()))
    assert errors[1] < errors[0] / (counts[1] / counts[0]) ** 1.8
    assert errors[1] < 0.02
    np.testing.assert_allclose(eps, wanted, atol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: editing.patch_means(1), "factor must be at least 2, got 1"),
        (lambda: editing.shrink(jnp.zeros((1, 8, 6, 3)), 4), "multiples of factor 4"),
        (lambda: editing.colourise(jnp.zeros((1, 8, 8, 3))), "must be grey"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
