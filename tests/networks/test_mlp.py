"""The MLP: derivatives, second time, conditions, transformations."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks, paths
from distilljax.core.binding import Bound
from distilljax.networks import Frequencies
from tests.networks.filled import filled
from tests.networks.slopes import check_jvp

SMALL = {"width": 16, "hidden": 24, "blocks": 1, "embedding": 8}
SHAPE = (4, 4, 1)


def point(batch=5, dtype=np.float32):
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.standard_normal((batch, *SHAPE)), dtype)
    t = rng.uniform(0.2, 0.9, batch)
    s = t * rng.uniform(0.1, 0.9, batch)
    return x, jnp.asarray(t, dtype), jnp.asarray(s, dtype), jnp.arange(batch) % 3


def call(network, params, *args, **kwargs):
    """The compiled network: op by op, compilation would take most of the time."""
    return jax.jit(network.apply, static_argnames="taps")(params, *args, **kwargs)


def test_defaults_on_digits():
    network = networks.mlp((8, 8, 1), num_classes=10, second_time=True)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert 1.0e6 < sum(a.size for a in jax.tree.leaves(shapes)) < 1.1e6
    assert network.capabilities == {"jvp", "taps", "second_time", "null"}
    assert network.num_classes == 10


@pytest.mark.parametrize(
    ("path", "code"), [(paths.linear(), "gap"), (paths.edm(), "end")]
)
def test_jvp_equals_finite_differences(path, code):
    with jax.enable_x64(True):
        network = networks.mlp(
            SHAPE,
            path=path,
            num_classes=3,
            second_time=True,
            time_code=code,
            **SMALL,
        )
        *primals, cond = point(dtype=np.float64)
        check_jvp(network, filled(network, np.float64), primals, cond)


def test_two_times_equal_one_at_the_start():
    one = networks.mlp(SHAPE, num_classes=3, **SMALL)
    two = networks.mlp(SHAPE, num_classes=3, second_time=True, **SMALL)
    teacher = filled(one)
    start = jax.jit(lambda key: two.init(key)["second"])(jax.random.key(3))
    student = {"second": start, **teacher}
    x, t, s, cond = point()
    expected = call(one, teacher, x, t, cond)
    for second in (None, s, jnp.zeros_like(s)):
        np.testing.assert_allclose(
            call(two, student, x, t, cond, second), expected, atol=1e-6
        )


def test_without_a_second_time_it_stands_at_the_first():
    network = networks.mlp(SHAPE, second_time=True, **SMALL)
    params = filled(network)
    x, t, s, _ = point()
    alone = call(network, params, x, t)
    np.testing.assert_allclose(alone, call(network, params, x, t, None, t), atol=1e-6)
    assert jnp.abs(call(network, params, x, t, None, s) - alone).max() > 1e-2


def test_taps_are_the_stream_after_every_block():
    options = {**SMALL, "blocks": 2}
    network = networks.mlp(SHAPE, num_classes=3, **options)
    params = filled(network)
    x, t, _, cond = point()
    out, taps = call(network, params, x, t, cond, taps=True)
    np.testing.assert_allclose(out, call(network, params, x, t, cond), atol=1e-6)
    assert [a.shape for a in taps] == [(5, 16)] * 2
    assert (taps[0] != taps[1]).any()
    shapes = networks.taps_shape(network, SHAPE)
    assert [a.shape for a in shapes] == [(1, 16)] * 2


def test_conditions_and_their_null():
    x, t, _, labels = point()
    by_label = networks.mlp(SHAPE, num_classes=3, **SMALL)
    by_vector = networks.mlp(SHAPE, cond_features=2, **SMALL)
    for network, cond in ((by_label, labels), (by_vector, jnp.ones((5, 2)))):
        params = filled(network)
        out = call(network, params, x, t, cond)
        away = call(network, params, x, t, network.null(cond))
        assert (jnp.abs(out - away).max((1, 2, 3)) > 1e-4).all()
        np.testing.assert_allclose(away, call(network, params, x, t), atol=1e-5)
    free = networks.mlp(SHAPE, **SMALL)
    assert free.null is None
    assert "null" not in free.capabilities


def test_jit_equals_eager():
    network = networks.mlp(SHAPE, num_classes=3, second_time=True, **SMALL)
    params = filled(network)
    x, t, s, cond = point()
    np.testing.assert_allclose(
        jax.jit(network.apply)(params, x, t, cond, s),
        call(network, params, x, t, cond, s),
        rtol=1e-5,
        atol=1e-5,
    )


def test_bfloat16_stays_near_and_leaves_in_float32():
    options = {"num_classes": 3, "second_time": True, **SMALL}
    full = networks.mlp(SHAPE, **options)
    half = networks.mlp(SHAPE, dtype=jnp.bfloat16, **options)
    params = filled(full)
    x, t, s, cond = point()
    exact = call(full, params, x, t, cond, s)
    out, taps = call(half, params, x, t, cond, s, taps=True)
    assert out.dtype == taps[0].dtype == jnp.float32
    error = jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact)
    # Eight bits of mantissa through four matrices: some thousandths, not nothing.
    assert 1e-4 < error < 3e-2
    text = jax.jit(half.apply).lower(params, x, t, cond, s).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert dots
    assert all("bf16" in line for line in dots)


def test_bfloat16_sees_times_in_float32():
    network = networks.mlp(SHAPE, dtype=jnp.bfloat16, **SMALL)
    params = filled(network)
    x, t, _, _ = point()
    # A step of 0.002 near 1 is lost in bfloat16, whose neighbours are 0.004 apart.
    one, two = (call(network, params, x, jnp.full_like(t, v)) for v in (0.998, 1.0))
    assert (one != two).any()


def test_vmap_over_parameters_scan_and_remat():
    network = networks.mlp(SHAPE, **SMALL)
    trees = [filled(network, seed=i) for i in range(2)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *trees)
    x, t, _, _ = point()
    each = jnp.stack([call(network, p, x, t) for p in trees])
    close = {"rtol": 1e-4, "atol": 1e-5}
    mapped = jax.jit(jax.vmap(network.apply, (0, None, None)))(stacked, x, t)
    np.testing.assert_allclose(mapped, each, **close)
    scanned = jax.lax.scan(lambda c, p: (c, network.apply(p, x, t)), 0, stacked)[1]
    np.testing.assert_allclose(scanned, each, **close)

    def loss(apply, params):
        return (apply(params, x, t) ** 2).mean()

    plain, again = (
        jax.jit(jax.grad(functools.partial(loss, apply)))(trees[0])
        for apply in (network.apply, jax.checkpoint(network.apply))
    )
    chex.assert_trees_all_close(plain, again, rtol=1e-4, atol=1e-6)


def test_gradient_reaches_every_parameter_also_through_a_jvp():
    network = networks.mlp(SHAPE, num_classes=3, second_time=True, **SMALL)
    params = filled(network)
    x, t, s, cond = point()

    def loss(params):
        out, tangent = jax.jvp(
            lambda x, t, s: call(network, params, x, t, cond, s),
            (x, t, s),
            (x, jnp.ones_like(t), jnp.zeros_like(s)),
        )
        return (out**2).mean() + (tangent**2).mean()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert jnp.isfinite(leaf).all()
        assert jnp.abs(leaf).max() > 0


def test_it_predicts_zero_at_the_start_and_its_output_layer_moves_first():
    network = networks.mlp(SHAPE, **SMALL)
    x, t, _, _ = point()

    @jax.jit
    def first(key):
        def loss(params):
            out = network.apply(params, x, t)
            return ((out - x) ** 2).mean(), out

        return jax.grad(loss, has_aux=True)(network.init(key))

    grads, out = first(jax.random.key(0))
    np.testing.assert_array_equal(out, np.zeros_like(x))
    moved = {k for k, v in grads.items() if any(map(jnp.any, jax.tree.leaves(v)))}
    assert moved == {"outward"}


def test_dropout_acts_with_a_key_only():
    network = networks.mlp(SHAPE, dropout=0.5, **SMALL)
    params = filled(network)
    x, t, _, _ = point()
    still = call(network, params, x, t)
    keyed = call(network, params, x, t, rng=jax.random.key(0))
    assert "dropout" in network.capabilities
    assert (still != keyed).any()
    again = call(network, params, x, t, rng=jax.random.key(0))
    np.testing.assert_array_equal(keyed, again)


def test_works_on_vectors_and_options_change_the_shapes():
    network = networks.mlp(
        (2,), frequencies=Frequencies(1.0, 5.0, 3), second_time=True, **SMALL
    )
    params = filled(network)
    assert params["second"]["hidden"]["kernel"].shape == (6, 8)
    assert params["block_0"]["up"]["kernel"].shape == (16, 24)
    assert call(network, params, jnp.ones((3, 2)), 0.5).shape == (3, 2)


def test_bound_reads_a_velocity_and_a_flow_map():
    network = networks.mlp(SHAPE, num_classes=3, second_time=True, **SMALL)
    bound = Bound("student", network, filled(network))
    x, t, s, cond = point()
    np.testing.assert_allclose(
        jax.jit(bound.flow_map(cond))(x, t, s),
        x + (s - t)[:, None, None, None] * call(network, bound.params, x, t, cond, s),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"num_classes": 3, "cond_features": 2}, "pass num_classes or cond_features"),
        ({"time_code": "start"}, "unknown time_code 'start'"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        networks.mlp(SHAPE, **options)


def test_an_image_condition_stands_beside_the_state():
    network = networks.mlp((4, 4, 2), num_classes=3, image_channels=1, **SMALL)
    params = filled(network)
    assert params["inward"]["kernel"].shape == (16 * 3, 16)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    t, label = jnp.full(2, 0.5), jnp.asarray([0, 2])
    small = jax.random.normal(jax.random.key(1), (2, 2, 2, 1))
    large = small.repeat(2, 1).repeat(2, 2)
    found = call(network, params, x, t, {"label": label, "image": small})
    same = call(network, params, x, t, {"label": label, "image": large})
    other = call(network, params, x, t, {"label": label, "image": large + 1.0})
    np.testing.assert_allclose(found, same, atol=1e-6)
    assert np.abs(other - found).max() > 1e-3
    # Guidance keeps the image.
    null = network.null({"label": label, "image": small})
    np.testing.assert_array_equal(null["label"], [3, 3])
    np.testing.assert_array_equal(null["image"], small)


def test_an_image_beside_vectors_is_refused():
    with pytest.raises(ValueError, match=r"height, width, channels\), got \(5,\)"):
        networks.mlp((5,), image_channels=1)
