"""Kinds of predictions: conversions between them and between paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilljax import paths
from distilljax.diffusion.fields import viewed
from distilljax.diffusion.oracles import prediction
from distilljax.diffusion.predictions import (
    KINDS,
    carry,
    convert,
    decompose,
    kind_of,
    recompose,
)
from tests.exact import BRIDGES, PATHS, allclose, gaussian, inner_times, normal

pytestmark = pytest.mark.usefixtures("x64")
REGULAR = ("velocity", "v", "F")
NAMES = ("linear_half", "vp_cosine", "edm", "trigflow_half")
PAIRS = list(itertools.permutations(("linear", "vp", "edm", "trigflow_half"), 2))


@pytest.fixture(params=NAMES)
def path(request):
    return PATHS[request.param]


def test_every_kind_becomes_every_other(path):
    t = inner_times(path)
    clean, eps = normal(0, 5, 2), normal(1, 5, 2)
    x = path.noise(clean, eps, t)

    @jax.jit
    def run(clean, eps, x, t):
        made = {kind: recompose(path, kind, clean, eps, t) for kind in KINDS}
        return made, {
            (a, b): convert(path, made[a], x, t, a, b)
            for a, b in itertools.product(KINDS, KINDS)
        }

    made, found = run(clean, eps, x, t)
    for (_, target), out in found.items():
        allclose(out, made[target], 1e-9)


@pytest.mark.parametrize("name", sorted(BRIDGES))
def test_kinds_convert_on_bridges(name):
    path = BRIDGES[name]
    t = inner_times(path)
    clean, eps, y = normal(0, 5, 2), normal(1, 5, 2), normal(2, 5, 2)
    x = path.noise(clean, eps, t, y)
    allclose(
        recompose(path, "velocity", clean, eps, t, y), path.velocity(clean, eps, t, y)
    )
    for kind in KINDS:
        out = recompose(path, kind, clean, eps, t, y)
        found = decompose(path, kind, out, x, t, y)
        allclose(found[0], clean, 1e-10)
        allclose(found[1], eps, 1e-10)


def test_regular_kinds_are_exact_at_both_ends(path):
    t = jnp.array([0.0, path.t_max])
    clean, eps = normal(0, 2, 2), normal(1, 2, 2)
    x = path.noise(clean, eps, t)
    for kind in REGULAR:
        out = recompose(path, kind, clean, eps, t)
        found = decompose(path, kind, out, x, t)
        allclose(found[0], clean, 1e-10)
        allclose(found[1], eps, 1e-10)


def test_what_an_end_fixes_is_exact_there(path):
    clean, eps = normal(0, 2, 2), normal(1, 2, 2)
    x0, start = path.noise(clean, eps, 0.0), path.noise(clean, eps, path.t_max)
    allclose(decompose(path, "eps", eps, x0, 0.0)[0], clean)
    noise = decompose(path, "x0", clean, start, path.t_max)[1]
    allclose(noise, eps, 1e-11)


def test_conversions_are_finite_at_both_ends_in_both_float_types(path):
    for dtype in (jnp.float32, jnp.float64):
        t = jnp.array([0.0, path.t_max], dtype)
        x, out = normal(0, 2, 2).astype(dtype), normal(1, 2, 2).astype(dtype)
        every = list(itertools.product(KINDS, ("x0", "eps", "F")))

        @jax.jit
        def run(out, x, t, every=every):
            return [convert(path, out, x, t, *pair) for pair in every]

        for pair, found in zip(every, run(out, x, t), strict=True):
            assert found.dtype == dtype
            assert np.all(np.isfinite(found)), pair


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    source=st.sampled_from(sorted(KINDS)),
    target=st.sampled_from(sorted(KINDS)),
    share=st.floats(0.02, 0.98),
    x=st.floats(-3.0, 3.0),
    out=st.floats(-3.0, 3.0),
)
def test_conversions_have_inverses(name, source, target, share, x, out):
    path = PATHS[name]
    top = path.angle(jnp.asarray(path.t_max))
    t = path.time_of_angle(share * top)
    x, out = jnp.array([[x]]), jnp.array([[out]])
    there = convert(path, out, x, t, source, target)
    back = convert(path, there, x, t, target, source)
    np.testing.assert_allclose(back, out, rtol=1e-7, atol=1e-7)


def test_velocity_is_the_published_target(path):
    t = inner_times(path)
    clean, eps = normal(0, 5, 2), normal(1, 5, 2)
    allclose(recompose(path, "velocity", clean, eps, t), path.velocity(clean, eps, t))


def test_edm_preconditioning_is_minus_f():
    path, sd = paths.edm(), 0.5
    t = inner_times(path)
    x, raw = normal(0, 5, 2), normal(1, 5, 2)
    skip = sd**2 / (t**2 + sd**2)
    out = t * sd / jnp.sqrt(t**2 + sd**2)
    wanted = skip[:, None] * x + out[:, None] * raw
    allclose(convert(path, -raw, x, t, "F", "x0"), wanted)


def linear_to_trigflow(x, t, v):
    """F of TrigFlow with sigma_d = 1 from a linear velocity (SANA-Sprint)."""
    s = jnp.sin(t) / (jnp.sin(t) + jnp.cos(t))
    norm = jnp.sqrt(s**2 + (1 - s) ** 2)
    x_lin = x * norm[:, None]
    first = (1 - 2 * s)[:, None] * x_lin
    second = (1 - 2 * s + 2 * s**2)[:, None] * v(x_lin, s)
    return (first + second) / norm[:, None]


def test_linear_to_trigflow_is_the_closed_form():
    v = prediction(gaussian(), paths.linear(), "velocity")
    field = viewed(v, paths.linear(), "velocity", on=paths.trigflow(), as_kind="F")
    t, x = jnp.array([0.0, 0.3, 0.8, 1.2, np.pi / 2]), normal(0, 5, 2)
    allclose(field(x, t), linear_to_trigflow(x, t, v))


def test_linear_to_trigflow_is_the_wrapper_of_rcm():
    v = prediction(gaussian(), paths.linear(), "velocity")
    field = viewed(v, paths.linear(), "velocity", on=paths.trigflow(), as_kind="x0")
    t, x = jnp.array([0.0, 0.3, 0.8, 1.2, np.pi / 2]), normal(0, 5, 2)
    total = (jnp.cos(t) + jnp.sin(t))[:, None]
    s = jnp.sin(t) / total[:, 0]
    wanted = x / total - jnp.sin(t)[:, None] / total * v(x / total, s)
    allclose(field(x, t), wanted)


def test_edm_to_trigflow_keeps_the_output():
    edm, trig = paths.edm(sigma_d=0.5), paths.trigflow(0.5)
    net = prediction(gaussian(), edm, "F")
    field = viewed(net, edm, "F", on=trig)
    t, x = jnp.array([0.1, 0.3, 0.8, 1.2]), normal(0, 4, 2)
    wanted = net(x / jnp.cos(t)[:, None], 0.5 * jnp.tan(t))
    allclose(field(x, t), wanted)


def test_vp_to_trigflow_only_labels_times_anew():
    vp, trig = paths.vp(), paths.trigflow()
    t = jnp.array([0.1, 0.3, 0.8, 1.2])
    x, time = normal(0, 4, 2), vp.time_of_angle(t)
    v = prediction(gaussian(), vp, "v")
    allclose(viewed(v, vp, "v", on=trig, as_kind="F")(x, t), v(x, time), 1e-10)
    eps = prediction(gaussian(), vp, "eps")
    wanted = (eps(x, time) - jnp.sin(t)[:, None] * x) / jnp.cos(t)[:, None]
    found = viewed(eps, vp, "eps", on=trig, as_kind="F")(x, t)
    allclose(found, wanted, 1e-9)


@pytest.mark.parametrize(("own", "on"), PAIRS)
def test_views_have_equal_denoisers(own, on):
    own, on, oracle = PATHS[own], PATHS[on], gaussian()
    top = min(float(p.angle(jnp.asarray(p.t_max))) for p in (own, on))
    t = on.time_of_angle(jnp.linspace(0.05, top - 0.05, 5))
    x = on.noise(normal(0, 5, 2), normal(1, 5, 2), t)

    @jax.jit
    def run(x, t):
        kinds = ("velocity", "x0", "F")
        fields = [prediction(oracle, own, kind) for kind in kinds]
        return oracle.denoised(on)(x, t), [
            viewed(field, own, kind, on=on, as_kind="x0")(x, t)
            for field, kind in zip(fields, kinds, strict=True)
        ]

    wanted, views = run(x, t)
    for found in views:
        allclose(found, wanted, 1e-12)


def along(field, x, t, dx):
    """Value and derivative of a field along ``(dx, 1)``."""
    return jax.jit(lambda x, t, dx: jax.jvp(field, (x, t), (dx, jnp.ones_like(t))))(
        x, t, dx
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("own", ["linear", "vp", "edm", "trigflow_half"])
def test_a_jvp_passes_a_view_at_both_ends(own, dtype):
    own, on = PATHS[own], paths.trigflow()
    net = prediction(gaussian(), own, "F")
    field = viewed(net, own, "F", on=on)
    t = jnp.array([0.0, 1e-4, 0.7, np.pi / 2], dtype)
    x = normal(0, 4, 2).astype(dtype)
    out, slope = along(field, x, t, jnp.ones_like(x))
    assert np.all(np.isfinite(out))
    assert np.all(np.isfinite(slope))
    assert np.max(np.abs(slope)) < 200.0


def test_a_jvp_through_a_view_matches_finite_differences():
    on, h = paths.trigflow(), 1e-6
    net = prediction(gaussian(), paths.linear(), "velocity")
    field = viewed(net, paths.linear(), "velocity", on=on)
    t, x, dx = jnp.array([0.2, 0.9, 1.5]), normal(0, 3, 2), normal(1, 3, 2)
    _, slope = along(field, x, t, dx)
    field = jax.jit(field)
    ahead, behind = field(x + h * dx, t + h), field(x - h * dx, t - h)
    allclose(slope, (ahead - behind) / (2 * h), 1e-7)


def test_carrying_a_point_there_and_back_is_the_identity(path):
    on = paths.trigflow()
    t, x = inner_times(path), normal(0, 5, 2)
    there = carry(path, on, x, t)
    allclose(on.log_snr(there[1]), path.log_snr(t), 1e-9)
    back = carry(on, path, *there)
    allclose(back[0], x, 1e-10)
    allclose(back[1], t, 1e-9)


def test_bridges_have_no_view():
    with pytest.raises(ValueError, match="bridge path has no view"):
        carry(BRIDGES["bridge_linear"], paths.linear(), jnp.zeros((1, 2)), 0.5)


def test_an_unknown_kind_names_the_near_ones():
    with pytest.raises(ValueError, match="Did you mean 'velocity'.*eps.*score"):
        kind_of("velocty")
