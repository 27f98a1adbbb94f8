"""Heads with a logit per position: what each logit sees, and how conditions enter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import losses, networks
from distilljax.networks.patch_heads import mixed
from tests.networks.filled import filled

B = 3
SHAPES = ((B, 6, 6, 5), (B, 3, 3, 4))


def features(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(s), np.float32) for s in shapes)


def logits(network, params, *args):
    return jax.jit(network.functions["logits"])(params, *args)


@pytest.mark.parametrize(
    ("kind", "shapes", "count"),
    [
        ("patches", SHAPES, 45),
        ("patches", ((B, 4), (B, 7, 4), (B, 2, 3, 4, 5)), 32),
        ("projected", SHAPES, 45),
    ],
)
def test_a_logit_per_position_of_every_tap(kind, shapes, count):
    network = networks.head(features(shapes), kind=kind, num_classes=3, width=8)
    params, t, cond = filled(network), jnp.linspace(0.1, 0.9, B), jnp.arange(B)
    x, other = features(shapes), features(shapes, 1)
    # Samples do not see each other: one may change alone.
    mixed = jax.tree.map(lambda a, b: a.at[0].set(b[0]), x, other)
    cases = [
        (x, t, cond),
        (other, t, cond),
        (x, t / 2, cond),
        (x, t, (cond + 1) % 3),
        (x, t, jnp.full(B, 3)),
        (mixed, t, cond),
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    run = jax.vmap(lambda case: network.functions["logits"](params, *case))
    out, *others, apart = jax.jit(run)(stacked)
    assert out.shape == (B, count)
    assert out.dtype == jnp.float32
    for found in others:
        assert (jnp.abs(out - found).max(1) > 1e-4).all()
    assert float(jnp.abs(apart[0] - out[0]).max()) > 1e-4
    np.testing.assert_allclose(apart[1:], out[1:], atol=1e-5)


@pytest.mark.parametrize("layers", [0, 2])
def test_a_patch_sees_its_window(layers):
    network = networks.head(
        features(SHAPES[:1]), kind="patches", width=8, layers=layers
    )
    params, (x,) = filled(network), features(SHAPES[:1])
    moved = x.at[:, 2, 1].multiply(-1.0)
    a, b = (logits(network, params, (y,), 0.5).reshape(B, 6, 6) for y in (x, moved))
    rows, columns = np.nonzero(np.abs(np.asarray(a - b)).max(0) > 1e-7)
    assert (rows.min(), rows.max()) == (2 - layers, 2 + layers)
    assert columns.max() == 1 + layers


def test_every_tap_has_a_head_and_projections_look_deeper():
    """Mixtures of a tap hold the deeper ones; the heads alone do not."""
    x = features()
    deeper = (x[0], x[1] + features(seed=2)[1])
    shallower = (x[0] + features(seed=2)[0], x[1])
    for kind, reaches in (("patches", False), ("projected", True)):
        network = networks.head(x, kind=kind, width=8)
        params = filled(network)
        out, deep, shallow = (
            logits(network, params, y, 0.5) for y in (x, deeper, shallower)
        )
        assert bool((jnp.abs(out - deep)[:, 36:] > 1e-5).all())
        assert bool((jnp.abs(out - deep)[:, :36].max(1) > 1e-5).any()) == reaches
        np.testing.assert_array_equal(out[:, 36:], shallow[:, 36:])


def test_projections_are_constants_of_the_scale_of_the_features():
    x = features(((512, 8, 8, 32), (512, 4, 4, 16)))
    first, second = mixed(x, 24)
    assert first.shape == (512, 8, 8, 24)
    assert second.shape == (512, 4, 4, 24)
    for found in (first, second):
        assert 0.5 < float(jnp.std(found)) < 1.2
    network = networks.head(x, kind="projected", width=8)
    taps = [
        leaf.shape
        for leaf in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
    ]
    assert (32, 8) not in taps
    assert (3, 3, 16, 8) not in taps


def test_a_product_is_linear_in_the_embedding_of_the_condition():
    x = features()
    network = networks.head(x, kind="patches", product=True, num_classes=3, width=8)
    params, cond = filled(network), jnp.arange(B)
    table = params["condition"]["label"]["table"]

    def at(scale):
        scaled = {"condition": {"label": {"table": scale * table}}}
        return logits(network, {**params, **scaled}, x, 0.5, cond)

    none, one, two = at(0.0), at(1.0), at(2.0)
    assert float(jnp.abs(one - none).min()) > 1e-6
    np.testing.assert_allclose(two - none, 2.0 * (one - none), rtol=1e-4, atol=1e-5)
    other = logits(network, params, x, 0.5, (cond + 1) % 3)
    assert float(jnp.abs(other - one).max()) > 1e-3


def test_an_embedding_is_a_condition_too_and_dicts_give_their_vector():
    x = features()
    network = networks.head(x, kind="patches", product=True, cond_features=2, width=8)
    params, cond = filled(network), jnp.ones((B, 2))
    plain = logits(network, params, x, 0.5, cond)
    both = {"embedding": cond, "image": jnp.ones((B, 6, 6, 1))}
    np.testing.assert_array_equal(plain, logits(network, params, x, 0.5, both))
    pooled = networks.head(x, width=8)
    image = jnp.ones((B, 6, 6, 1))
    weights = filled(pooled)
    np.testing.assert_array_equal(
        logits(pooled, weights, x, 0.5, image), logits(pooled, weights, x, 0.5)
    )


def test_gan_losses_average_over_positions():
    out = jnp.asarray(np.random.default_rng(0).standard_normal((2, B, 7)), np.float32)
    real, fake = out
    for loss in (losses.discriminator_hinge, losses.discriminator_nonsaturating):
        each = jnp.stack([loss(real[:, i], fake[:, i]) for i in range(7)])
        np.testing.assert_allclose(loss(real, fake), each.mean(0), rtol=1e-6)
    np.testing.assert_allclose(losses.generator_hinge(fake), -fake.mean(1), rtol=1e-6)


def test_gradient_reaches_parameters_and_features():
    x, cond = features(), jnp.arange(B)
    network = networks.head(x, kind="projected", product=True, num_classes=3, width=8)
    slope = jax.grad(lambda p, f: logits(network, p, f, 0.5, cond).mean(), (0, 1))
    for leaf in jax.tree.leaves(jax.jit(slope)(filled(network), x)):
        assert jnp.abs(leaf).max() > 0


def test_refuses():
    with pytest.raises(ValueError, match="unknown kind of head 'patch'.*'patches'"):
        networks.head(features(), kind="patch")
    with pytest.raises(ValueError, match="product=True is for heads with a logit per"):
        networks.head(features(), product=True)
    with pytest.raises(ValueError, match=r"equally many axes.*kind='pooled'"):
        networks.head(features(((B, 4), (B, 3, 3, 4))), kind="projected")
    with pytest.raises(ValueError, match="at most 3 axes of positions"):
        networks.head(features(((B, 2, 2, 2, 2, 4),)), kind="patches")
