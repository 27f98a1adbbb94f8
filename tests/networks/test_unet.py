"""The UNet: derivatives, sizes, taps, two times, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks, paths
from distilljax.networks.unet import resampled
from tests.networks.filled import filled
from tests.networks.slopes import check_jvp

SHAPE = (8, 8, 2)
SMALL = {
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention_sizes": (4,),
    "head_size": 8,
    "embedding": 8,
}


def small(**options):
    return networks.unet(SHAPE, **{**SMALL, **options})


def point(batch=2, dtype=np.float32):
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.standard_normal((batch, *SHAPE)), dtype)
    t = rng.uniform(0.2, 0.9, batch)
    s = t * rng.uniform(0.1, 0.9, batch)
    return x, jnp.asarray(t, dtype), jnp.asarray(s, dtype), jnp.arange(batch) % 3


def call(network, params, *args, **kwargs):
    return jax.jit(network.apply, static_argnames="taps")(params, *args, **kwargs)


@pytest.mark.parametrize(
    "options", [{}, {"double_norm": True, "path": paths.edm()}], ids=["plain", "edm"]
)
def test_jvp_equals_finite_differences(options):
    with jax.enable_x64(True):
        network = small(num_classes=3, second_time=True, **options)
        *primals, cond = point(dtype=np.float64)
        check_jvp(network, filled(network, np.float64), primals, cond)


def test_the_defaults_have_the_size_of_edms_network():
    network = networks.unet((32, 32, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert 60 < count < 61
    taps = networks.taps_shape(network, (32, 32, 3))
    assert [tap.shape for tap in taps] == [
        (1, 32, 32, 256),
        (1, 16, 16, 256),
        (1, 8, 8, 256),
    ]


def test_it_starts_at_zero_and_a_second_time_changes_nothing_at_first():
    one, two = small(num_classes=3), small(num_classes=3, second_time=True)
    x, t, s, cond = point()
    params = jax.jit(two.init)(jax.random.key(0))
    assert not np.any(call(two, params, x, t, cond, s))
    plain = filled(one)
    np.testing.assert_array_equal(
        call(two, {**plain, "second": params["second"]}, x, t, cond, s),
        call(one, plain, x, t, cond),
    )


def test_every_parameter_matters():
    network = small(num_classes=3, second_time=True, image_channels=1)
    params = filled(network)
    x, t, s, labels = point()
    cond = {"label": labels, "image": x[..., :1]}

    def size(params):
        return jnp.sum(network.apply(params, x, t, cond, s) ** 2)

    grads = jax.jit(jax.grad(size))(params)
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


def test_half_precision_stays_close():
    x, t, _, cond = point()
    full, half = (small(num_classes=3, dtype=d) for d in (None, jnp.bfloat16))
    params = filled(full)
    wanted, found = (call(n, params, x, t, cond) for n in (full, half))
    assert found.dtype == jnp.float32
    assert jnp.linalg.norm(found - wanted) < 0.05 * jnp.linalg.norm(wanted)


def test_dropout_follows_its_key():
    network = small(dropout=0.3)
    params = filled(network)
    x, t, _, _ = point()
    keys = jax.random.split(jax.random.key(0))
    one, other = (call(network, params, x, t, rng=key) for key in keys)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(one, call(network, params, x, t, rng=keys[0]))
    assert np.abs(one - call(network, params, x, t)).max() > 1e-3


def test_images_are_enlarged_and_averaged():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(resampled(resampled(x, 2), -2), x)
    assert float(resampled(x, -2)[0, 0, 0, 0]) == (0 + 1 + 4 + 5) / 4


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((6, 6, 1), {"multipliers": (1, 1, 1)}, "halve evenly"),
        ((8, 4, 1), {}, "square images"),
        ((8, 8, 1), {"dropout": 1.0}, "dropout must lie"),
        ((8, 8, 1), {"blocks": 0}, "at least one block"),
    ],
)
def test_what_does_not_fit_is_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        networks.unet(shape, **{**SMALL, **options})
