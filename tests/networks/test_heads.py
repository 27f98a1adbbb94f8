"""Discriminator heads and learned weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks, paths
from tests.networks.filled import filled

B = 5


def features(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = ((B, 6), (B, 3, 3, 4))
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def logits(network, params, *args):
    return jax.jit(network.functions["logits"])(params, *args)


@pytest.fixture
def head():
    return networks.head(features(), num_classes=3, width=8, layers=2)


def test_logits_depend_on_features_time_and_class(head):
    params = filled(head)
    t, cond = jnp.linspace(0.1, 0.9, B), jnp.arange(B) % 3
    out = logits(head, params, features(), t, cond)
    assert out.shape == (B,)
    assert out.dtype == jnp.float32
    for other in (
        logits(head, params, features(1), t, cond),
        logits(head, params, features(), t / 2, cond),
        logits(head, params, features(), t, (cond + 1) % 3),
        logits(head, params, features(), t),
    ):
        assert (jnp.abs(out - other) > 1e-5).all()
    eager = head.functions["logits"](params, features(), t, cond)
    np.testing.assert_allclose(eager, out, atol=1e-5)
    null = jnp.full((B,), 3)
    np.testing.assert_allclose(
        logits(head, params, features(), t, null),
        logits(head, params, features(), t),
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", ["pooled", "patches"])
def test_a_told_head_depends_on_its_second_time(kind):
    told = networks.head(features(), kind=kind, width=8, second_time=True)
    plain = networks.head(features(), kind=kind, width=8)
    assert "second_time" in told.capabilities
    assert "second_time" not in plain.capabilities
    params, t = filled(told), jnp.linspace(0.1, 0.9, B)
    out = logits(told, params, features(), t, None, jnp.full(B, 0.5))
    other = logits(told, params, features(), t, None, jnp.full(B, 1.0))
    assert (jnp.abs(out - other).reshape(B, -1).max(1) > 1e-5).all()
    key = jax.random.key(0)
    own, shared = (dict(jax.eval_shape(n.init, key)) for n in (told, plain))
    assert set(own) - set(shared) == {"told"}
    with pytest.raises(ValueError, match="has a second time and was called without s"):
        logits(told, params, features(), t)
    with pytest.raises(ValueError, match="has no second time"):
        logits(plain, filled(plain), features(), t, None, t)


def test_scale_of_the_features_does_not_matter(head):
    params = filled(head)
    scaled = jax.tree.map(lambda a: 100.0 * a + 3.0, features())
    np.testing.assert_allclose(
        logits(head, params, scaled, 0.5),
        logits(head, params, features(), 0.5),
        atol=1e-3,
    )


def test_gradient_reaches_parameters_and_features(head):
    params = filled(head)
    cond = jnp.arange(B) % 3
    slope = jax.grad(lambda p, f: logits(head, p, f, 0.5, cond).sum(), argnums=(0, 1))
    by_params, by_features = jax.jit(slope)(params, features())
    for leaf in jax.tree.leaves((by_params, by_features)):
        assert jnp.abs(leaf).max() > 0


def test_jvp_equals_finite_differences():
    with jax.enable_x64(True):
        network = networks.head(features(), width=8)
        params = filled(network, np.float64)
        point = (features(dtype=np.float64), jnp.linspace(0.1, 0.9, B))
        ones = jax.tree.map(jnp.ones_like, point[0]), jnp.ones(B)

        def run(f, t):
            return logits(network, params, f, t)

        exact = jax.jit(lambda p, d: jax.jvp(run, p, d)[1])(point, ones)
        h = 1e-6
        ahead, behind = (
            run(*jax.tree.map(lambda a, d: a + k * d, point, ones))  # noqa: B023
            for k in (h, -h)
        )
        assert exact.dtype == jnp.float64
        np.testing.assert_allclose(exact, (ahead - behind) / (2 * h), atol=1e-7)


def test_head_on_the_taps_of_an_mlp_in_bfloat16():
    mlp = networks.mlp((2,), width=8, hidden=8, blocks=2, embedding=4)
    shapes = networks.taps_shape(mlp, (2,))
    full = networks.head(shapes, width=8)
    half = networks.head(shapes, width=8, dtype=jnp.bfloat16)
    params = filled(full)
    x = features()[0][:, :2]
    _, taps = jax.jit(functools.partial(mlp.apply, taps=True))(filled(mlp), x, 0.5)
    exact, near = (logits(n, params, taps, 0.5) for n in (full, half))
    assert near.dtype == jnp.float32
    assert (near != exact).any()
    np.testing.assert_allclose(near, exact, atol=0.05)


def test_refuses():
    with pytest.raises(ValueError, match="features_shape must hold"):
        networks.head(())
    with pytest.raises(ValueError, match="has no taps"):
        networks.taps_shape(networks.log_weight(), (2,))


@pytest.mark.parametrize("path", [None, paths.trigflow(), paths.edm()])
def test_log_weight_starts_at_zero_and_learns(path):
    network = networks.log_weight(path=path)
    params = network.init(jax.random.key(0))
    t = jnp.array([0.0, 0.1, 0.7, 1.5])
    value = network.functions["log_weight"]
    out = value(params, t)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.zeros(4))
    grads = jax.grad(lambda p: (value(p, t) - t).sum())(params)
    assert all((g != 0).any() for g in jax.tree.leaves(grads))
    assert value(params, jnp.ones((3, 2))).shape == (3, 2)


def test_log_weight_fits_a_curve():
    network = networks.log_weight()
    t = jnp.linspace(0.0, 1.5, 64)
    target = jnp.sin(3 * t)
    value = network.functions["log_weight"]

    def step(params, _):
        loss, grads = jax.value_and_grad(
            lambda p: ((value(p, t) - target) ** 2).mean()
        )(params)
        return jax.tree.map(lambda a, g: a - 0.02 * g, params, grads), loss

    params = network.init(jax.random.key(0))
    losses = jax.lax.scan(step, params, None, length=300)[1]
    assert losses[-1] < 0.05 * losses[0]


def bottleneck(side, channels=32):
    rng = np.random.default_rng(1)
    shape = (B, side, side, channels)
    return (
        jnp.zeros((B, 2 * side, 2 * side, 4)),
        jnp.asarray(rng.standard_normal(shape), jnp.float32),
    )


@pytest.mark.parametrize(("side", "layers"), [(4, 1), (8, 2), (16, 3), (32, 4)])
def test_convolutions_halve_the_bottleneck_until_one_logit_is_left(side, layers):
    """DMD2's head: 8 x 8 takes one halving, SDXL's 32 x 32 three."""
    head = networks.head(bottleneck(side), kind="bottleneck", num_classes=3)
    params = jax.eval_shape(head.init, jax.random.key(0))
    convolutions = [name for name in params if name.startswith("layer_")]
    assert len(convolutions) == layers
    for name in convolutions:
        assert params[name]["convolution"]["kernel"].shape == (4, 4, 32, 32)


def test_a_bottleneck_head_sees_places_and_neither_time_nor_label():
    taps = bottleneck(8)
    head = networks.head(taps, kind="bottleneck", num_classes=3)
    params, labels = filled(head), jnp.arange(B) % 3
    out = logits(head, params, taps, 0.3, labels)
    assert out.shape == (B,)
    np.testing.assert_array_equal(out, logits(head, params, taps, 0.9, labels[::-1]))
    np.testing.assert_array_equal(out, logits(head, params, taps, 0.9))
    moved = (taps[0], jnp.roll(taps[1], 1, 1))
    assert (jnp.abs(out - logits(head, params, moved, 0.3)) > 1e-6).all()
    shallow = (taps[0] + 1.0, taps[1])
    np.testing.assert_array_equal(out, logits(head, params, shallow, 0.3))


def test_a_bottleneck_head_wants_no_second_time_and_no_product():
    with pytest.raises(ValueError, match="is told no times"):
        networks.head(features(), kind="bottleneck", second_time=True)
    with pytest.raises(ValueError, match="a logit per position"):
        networks.head(features(), kind="bottleneck", product=True)
