"""The transformer: derivatives under scan and remat, taps, conditions, two times."""

import functools

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks, paths
from distilljax.networks.dit import DiT, positions
from tests.networks.filled import filled
from tests.networks.slopes import check_jvp

SHAPE = (4, 8, 2)
SMALL = {"patch": 2, "width": 16, "depth": 3, "heads": 2, "mlp_ratio": 2.0}


def small(**options):
    return networks.dit(SHAPE, **{**SMALL, **options})


def point(batch=3, dtype=np.float32):
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.standard_normal((batch, *SHAPE)), dtype)
    t = rng.uniform(0.2, 0.9, batch)
    s = t * rng.uniform(0.1, 0.9, batch)
    return x, jnp.asarray(t, dtype), jnp.asarray(s, dtype), jnp.arange(batch) % 3


def call(network, params, *args, **kwargs):
    return jax.jit(network.apply, static_argnames="taps")(params, *args, **kwargs)


@pytest.mark.parametrize(
    "options",
    [
        {"remat": "full"},
        {"remat": "dots", "double_norm": True, "time_code": "end"},
        {"qk_norm": False, "attention_kind": "chunked", "path": paths.edm()},
    ],
    ids=["full", "double_norm", "chunked"],
)
def test_jvp_equals_finite_differences(options):
    with jax.enable_x64(True):
        network = small(num_classes=3, second_time=True, **options)
        *primals, cond = point(dtype=np.float64)
        check_jvp(network, filled(network, np.float64), primals, cond)


def residual(network, params, x, t, s, cond):
    """A loss of the kind of sCM: a stopped tangent inside."""
    out, moved = jax.jvp(
        lambda x, t: network.apply(params, x, t, cond, s), (x, t), (x, jnp.ones_like(t))
    )
    return jnp.mean((out - jax.lax.stop_gradient(out - moved)) ** 2)


def test_what_is_computed_again_changes_no_gradient():
    *arguments, cond = point()
    found = []
    for options in ({}, {"remat": "dots"}, {"remat": "full"}):
        network = small(num_classes=3, second_time=True, **options)
        params = filled(network)
        step = jax.jit(jax.value_and_grad(functools.partial(residual, network)))
        found.append(step(params, *arguments, cond))
    chex.assert_trees_all_close(found[0], found[1], rtol=2e-4, atol=1e-5)
    chex.assert_trees_all_close(found[0], found[2], rtol=2e-4, atol=1e-5)


def test_blocks_compile_like_one():
    def program(depth):
        network = small(depth=depth)
        x, t, _, _ = point()
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        return str(jax.make_jaxpr(network.apply)(shapes, x, t)).count("\n")

    assert program(9) == program(3)


def _scanned(jaxpr):
    """Shapes of all that scans read and write."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield from (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _scanned(sub)


@pytest.mark.parametrize("double_norm", [False, True])
def test_modulations_do_not_pass_through_the_scan(double_norm):
    """A third of the parameters is sliced, and its gradient stacked, in no loop."""
    network = networks.dit(
        (8, 8, 3), width=16, depth=5, heads=2, mlp_ratio=3, double_norm=double_norm
    )
    params, x, t = network.init(jax.random.key(0)), jnp.ones((3, 8, 8, 3)), jnp.ones(3)

    def loss(params):
        return jnp.sum(network.apply(params, x, t) ** 2)

    shapes = set(_scanned(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    kernels = {
        name: leaf.shape
        for name, leaf in jax.tree.leaves_with_path(params["blocks"])
        if leaf.ndim == 3
    }
    assert len(kernels) == (6 if double_norm else 5)
    for name, shape in kernels.items():
        assert (shape in shapes) == ("modulation" not in jax.tree_util.keystr(name))


def test_half_precision_stays_close():
    x, t, s, cond = point()
    full, half = (
        small(num_classes=3, second_time=True, dtype=dtype)
        for dtype in (None, jnp.bfloat16)
    )
    params = filled(full)
    wanted = call(full, params, x, t, cond, s)
    found = call(half, params, x, t, cond, s)
    assert found.dtype == jnp.float32
    assert jnp.linalg.norm(found - wanted) < 0.03 * jnp.linalg.norm(wanted)
    a, b = (
        jax.jit(jax.jvp, static_argnums=0)(
            lambda x, n=n: n.apply(params, x, t, cond, s), (x,), (x,)
        )[1]
        for n in (full, half)
    )
    assert jnp.linalg.norm(a - b) < 0.06 * jnp.linalg.norm(a)


def test_it_starts_at_zero_and_a_second_time_changes_nothing_at_first():
    one, two = small(num_classes=3), small(num_classes=3, second_time=True)
    x, t, s, cond = point()
    assert not np.any(call(one, jax.jit(one.init)(jax.random.key(0)), x, t, cond))
    params = jax.jit(two.init)(jax.random.key(0))
    plain = filled(one)
    params = {**plain, "second": params["second"]}
    np.testing.assert_array_equal(
        call(two, params, x, t, cond, s), call(one, plain, x, t, cond)
    )


def test_taps_are_the_stream_after_the_named_blocks():
    network = small(depth=4, tap_layers=(2, 0))
    params = filled(network)
    x, t, _, _ = point()
    out, taps = call(network, params, x, t, taps=True)
    np.testing.assert_allclose(out, call(network, params, x, t), rtol=1e-5, atol=1e-5)
    assert [tap.shape for tap in taps] == [(3, 2, 4, 16)] * 2
    changed = jax.tree.map(lambda a: a, params)
    changed["blocks"] = jax.tree.map(lambda a: a.at[1:].set(0.3), params["blocks"])
    _, others = call(network, changed, x, t, taps=True)
    np.testing.assert_allclose(taps[0], others[0], rtol=1e-5, atol=1e-5)
    assert np.abs(taps[1] - others[1]).max() > 1e-2
    default = networks.taps_shape(small(depth=12), SHAPE)
    assert len(default) == 4


def test_patches_are_put_back_where_they_came_from():
    module = DiT.__new__(DiT)
    object.__setattr__(module, "patch", 2)
    object.__setattr__(module, "grid", (2, 4))
    x, *_ = point()
    tokens = DiT._patches(module, x)
    assert tokens.shape == (3, 8, 8)
    np.testing.assert_array_equal(tokens[:, 1].reshape(3, 2, 2, 2), x[:, :2, 2:4])
    np.testing.assert_array_equal(DiT._image(module, tokens, x.shape), x)


def test_positions_tell_patches_apart():
    table = positions(3, 5, 16)
    assert table.shape == (15, 16)
    gaps = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert gaps[~np.eye(15, dtype=bool)].min() > 0.1


def test_conditions_of_every_kind():
    x, t, _, labels = point()
    rng = np.random.default_rng(0)
    embedding = jnp.asarray(rng.standard_normal((3, 5)), np.float32)
    image = jnp.asarray(rng.standard_normal((3, 2, 4, 1)), np.float32)
    large = image.repeat(2, 1).repeat(2, 2)
    for options, cond, null in (
        ({}, None, None),
        ({"num_classes": 3}, labels, jnp.full_like(labels, 3)),
        ({"cond_features": 5}, embedding, jnp.zeros_like(embedding)),
        ({"image_channels": 1}, image, jnp.zeros_like(image)),
        (
            {"num_classes": 3, "image_channels": 1},
            {"label": labels, "image": image},
            {"label": jnp.full_like(labels, 3), "image": image},
        ),
    ):
        network = small(**options)
        params = filled(network)
        out = call(network, params, x, t, cond)
        assert ("null" in network.capabilities) == (cond is not None)
        if cond is None:
            continue
        chex.assert_trees_all_equal(network.null(cond), null)
        assert np.abs(out - call(network, params, x, t, null)).max() > 1e-3
        if not isinstance(cond, dict):
            np.testing.assert_array_equal(
                call(network, params, x, t), call(network, params, x, t, null)
            )
        if options == {"image_channels": 1}:
            np.testing.assert_array_equal(out, call(network, params, x, t, large))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "M"}, "unknown size 'M'.*XL"),
        ({"remat": "some"}, "unknown remat 'some'.*dots"),
        ({"attention_kind": "flash"}, "unknown attention_kind 'flash'.*chunked"),
        ({"patch": 3}, "patch must divide.*patch 3"),
        ({"heads": 3}, "heads 3"),
        ({"tap_layers": (3,)}, "tap_layers must lie in 0 .. 2"),
        ({"num_classes": 3, "cond_features": 4}, "labels or an embedding"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options).init(jax.random.key(0))


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (jnp.zeros((3,), jnp.int32), "dict with 'label' and 'image', got"),
        ({"labels": jnp.zeros((3,), jnp.int32)}, "got .'labels'"),
        ({"image": jnp.zeros((3, 3, 4, 1))}, r"whole part.*got \(3, 3, 8, 1\)"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cond, message):
    network = small(num_classes=3, image_channels=1)
    params = jax.eval_shape(network.init, jax.random.key(0))
    x, t, _, _ = point()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.apply, params, x, t, cond)


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("XL", 675)])
def test_named_sizes_are_the_papers(size, millions):
    network = networks.dit((32, 32, 4), size=size, num_classes=1000, qk_norm=False)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert millions * 0.97 < count < millions * 1.03
