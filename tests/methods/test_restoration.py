"""TSD-SR: both gaps at their points of rest and against closed forms, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks, oracles, paths
from distilljax.core.binding import Bound, Nets
from distilljax.core.context import Context
from distilljax.diffusion.times import Point
from distilljax.methods import tsd_sr
from distilljax.methods.restoration.tsd_sr import _falling
from distilljax.sampling.generation import student_sampler
from tests import exact
from tests.methods.played import play, vanishes
from tests.networks.filled import filled

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()
SPREAD = np.asarray([0.8, 0.3])
REAL = oracles.Gaussian(np.asarray([0.7, -0.3]), SPREAD)
FAKE = oracles.Gaussian(np.asarray([-0.2, 0.4]), SPREAD)
ALONE = {"regression_weight": 0.0}


def exact_scores(fake=FAKE):
    return {
        "teacher": oracles.network(REAL, LINEAR),
        "fake_score": oracles.network(fake, LINEAR),
    }


def with_targets(method, shift, **options):
    """The method on sharp images that are its own outputs, moved by ``shift``."""
    x = play(method, **options).context().data["x"]
    return play(method, data={"x0": x + shift}, **options)


def direction(found):
    """Where the matching term moves the output."""
    ctx = found.context()
    loss = found.update.phase.terms[0].loss

    def total(x):
        own = ctx.of("match")
        return jnp.sum(loss(dataclasses.replace(own, data={**own.data, "x": x})))

    x = ctx.data["x"]
    return -x.shape[-1] * jax.grad(total)(x)


def test_the_target_gap_vanishes_where_the_output_is_the_sharp_image():
    plain = tsd_sr(share=0.0, weights=(1.0,), **ALONE)
    found = with_targets(plain, 0.0)
    assert float(found.values()["match"].max()) < 1e-24
    vanishes(found.gradients()["student"], 1e-12)
    # Along the trajectory only while both states follow one field.
    long = tsd_sr(share=0.0, **ALONE)
    apart = with_targets(long, 0.0)
    together = with_targets(long, 0.0, same=("fake_score",))
    assert float(together.values()["match"].max()) < 1e-24
    assert float(apart.values()["match"].max()) > 1e-10


@pytest.mark.parametrize("at", [0.05, 0.3, 0.9])
def test_the_target_gap_pulls_toward_the_sharp_image_at_every_time(at):
    """``-sigma^2 (e(a) - e(b)) = sigma^3 alpha (x0 - x)/(alpha^2 s^2 + sigma^2)``."""
    shift = jnp.asarray([0.4, -0.2])
    method = tsd_sr(share=0.0, weights=(1.0,), law=Point(at), **ALONE)
    found = with_targets(method, shift, **exact_scores())
    alpha, sigma = 1 - at, at
    pull = sigma**3 * alpha * shift / ((alpha * SPREAD) ** 2 + sigma**2)
    exact.allclose(direction(found), jnp.broadcast_to(pull, (16, 2)), 1e-6)
    assert bool(jnp.all(pull * shift > 0))


def test_the_gap_of_two_gaussians_is_the_weighted_matching_gap():
    at = 0.3
    method = tsd_sr(share=1.0, weights=(1.0,), law=Point(at), **ALONE)
    found = play(method, **exact_scores())
    variance = ((1 - at) * SPREAD) ** 2 + at**2
    gap = at * (REAL.mean - FAKE.mean) * at**2 / variance
    exact.allclose(direction(found), jnp.broadcast_to(gap, (16, 2)), 1e-6)


def test_points_of_the_trajectory_add_up():
    """The gap of equal spreads is the same at every point, so only times tell."""
    at, spacing = 0.6, 0.1
    options = {"share": 1.0, "law": Point(at), "spacing": spacing, **ALONE}
    first, both = (
        direction(play(tsd_sr(weights=w, **options), **exact_scores()))
        for w in ((1.0,), (1.0, 0.3))
    )

    def gap(t):
        variance = ((1 - t) * SPREAD) ** 2 + t**2
        return t * (REAL.mean - FAKE.mean) * t**2 / variance

    added = jnp.broadcast_to(0.3 * gap(at - spacing), (16, 2))
    exact.allclose(both - first, added, 1e-6)


def test_the_student_starts_from_the_degraded_image():
    method = tsd_sr(start="degraded")
    assert method.batch == {"x0", "degraded"}
    assert method.sampling.start == "degraded"
    degraded = exact.normal(4, 16, 2)
    found = play(method, data={"degraded": degraded})
    ctx = found.context()
    net = ctx.nets.student.network
    run = student_sampler(method, net, 1)
    wanted = run(ctx.nets.student.params, degraded, ctx.cond, jax.random.key(0))
    exact.allclose(ctx.data["x"], wanted, 1e-6)


def test_both_scores_may_be_guided():
    plain, real, both = (
        play(tsd_sr(guidance=w, fake_guidance=u, **ALONE)).values()["match"]
        for w, u in ((1.0, 1.0), (3.0, 1.0), (3.0, 3.0))
    )
    assert not np.allclose(real, plain, rtol=1e-3)
    assert not np.allclose(both, real, rtol=1e-3)
    # Guided alike they agree wherever their networks do.
    agree = tsd_sr(guidance=3.0, fake_guidance=3.0, share=1.0, **ALONE)
    vanishes(play(agree, same=("fake_score",)).gradients()["student"], 1e-12)


def test_the_degraded_image_may_be_the_condition():
    net = networks.dit(
        (4, 4, 1), width=16, depth=1, heads=2, image_channels=1, num_classes=None
    )
    params = {
        name: filled(net, np.float64, seed)
        for seed, name in enumerate(("student", "teacher", "fake_score"))
    }
    degraded, sharp = exact.normal(1, 4, 2, 2, 1), exact.normal(2, 4, 4, 4, 1)
    (phase,) = [p for p in tsd_sr().phases if p.name == "student"]

    def loss(student, image):
        bound = {k: Bound(k, net, v) for k, v in {**params, **student}.items()}
        ctx = Context(
            nets=Nets(bound),
            data={"x0": sharp, "cond": image},
            step=jnp.asarray(0),
            repeat=jnp.asarray(0),
            memory={},
            root=jax.random.key(0),
            batch_size=4,
            sample_shape=(4, 4, 1),
        )
        x = phase.draws["x"](ctx.of("x"))
        ctx = dataclasses.replace(ctx, data={**ctx.data, "x": x})
        return jnp.stack([jnp.mean(t.loss(ctx.of(t.name))) for t in phase.terms])

    student = {"student": params["student"]}
    slopes = jax.jit(jax.jacrev(loss))(student, degraded)
    for i in range(2):
        sizes = [float(jnp.abs(g[i]).max()) for g in jax.tree.leaves(slopes)]
        assert np.all(np.isfinite(sizes))
        assert max(sizes) > 1e-6
    here, elsewhere = (
        jax.jit(loss)(student, image) for image in (degraded, degraded + 1.0)
    )
    assert bool(jnp.all(jnp.abs(here - elsewhere) > 1e-6))


def test_a_trajectory_falls_evenly_in_the_clock_before_its_shift():
    """Stable Diffusion 3's sigmas of the indices 500, 550 and 600, shifted by 3."""
    unshifted = np.asarray([0.5, 0.45, 0.4])
    wanted = 3 * unshifted / (1 + 2 * unshifted)
    found = _falling(jnp.asarray(wanted[:1]), 3, 0.05, 3.0)
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-6)


def test_a_trajectory_that_would_pass_the_data_ends_there_in_even_steps():
    found = _falling(jnp.asarray([0.081]), 4, 0.05, 1.0)
    np.testing.assert_allclose(found[:, 0], [0.081, 0.061, 0.041, 0.021], rtol=1e-6)
