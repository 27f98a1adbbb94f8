"""Embeddings of times and conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distilljax import paths
from distilljax.networks.embeddings import (
    ConditionEmbedding,
    Frequencies,
    TimeEmbedding,
    log_clock,
    null_condition,
    sinusoids,
)


def test_sinusoids_are_geometric_from_low_to_high():
    t = jnp.array([0.0, 0.3])
    out = sinusoids(t, Frequencies(1.0, 16.0, 5))
    angles = 0.3 * np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(out[1], expected, rtol=1e-5)
    np.testing.assert_array_equal(out[0], [0] * 5 + [1] * 5)


def test_derivative_in_time_is_bounded_by_the_highest_frequency():
    t = jnp.linspace(0.0, 1.0, 101)
    slope = jax.jvp(sinusoids, (t,), (jnp.ones_like(t),))[1]
    assert 19.0 < jnp.abs(slope).max() <= 20.0 * (1 + 1e-5)


def test_time_embedding_can_start_at_zero():
    t = jnp.linspace(0.0, 1.0, 5)
    zero = TimeEmbedding(4, zero=True, rngs=nnx.Rngs(0))(t, jnp.float32)
    np.testing.assert_array_equal(zero, np.zeros((5, 4)))
    assert (TimeEmbedding(4, rngs=nnx.Rngs(0))(t, jnp.float32) != 0).all()


def test_features_reach_the_layers_in_their_dtype_after_float32_sines():
    embed = TimeEmbedding(4, rngs=nnx.Rngs(0))
    # bfloat16 holds 8 bits: as bfloat16 these times would be one.
    t = jnp.array([1.0, 1.0 + 2**-7])
    hidden = sinusoids(t).astype(jnp.bfloat16)
    assert (hidden[0] != hidden[1]).any()
    assert embed(t, jnp.bfloat16).dtype == jnp.float32


def test_log_clock():
    assert log_clock(paths.linear()) is None
    assert log_clock(paths.trigflow()) is None
    path = paths.edm()
    clock = log_clock(path)
    t = jnp.array([0.0, path.t_min, 1.0, 80.0])
    expected = 0.25 * np.log([path.t_min, path.t_min, 1.0, 80.0])
    np.testing.assert_allclose(clock(t), expected, rtol=1e-5)


def test_labels_have_a_null_row():
    embed = ConditionEmbedding(4, num_classes=3, rngs=nnx.Rngs(0))
    labels = jnp.array([2, 0])
    null = null_condition(3, None)
    assert embed(labels).shape == (2, 4)
    np.testing.assert_array_equal(null(labels), [3, 3])
    np.testing.assert_array_equal(embed(null(labels))[0], embed(None))
    assert (embed(labels) != embed(None)).any()


def test_embeddings_have_zero_as_null():
    embed = ConditionEmbedding(4, features=2, rngs=nnx.Rngs(0))
    embed.project.bias.set_value(jnp.arange(4.0))
    cond = jnp.ones((3, 2))
    null = null_condition(None, 2)
    np.testing.assert_array_equal(embed(null(cond))[0], embed(None))
    assert (embed(cond) != embed(None)).any()


def test_no_condition():
    assert ConditionEmbedding(4, rngs=nnx.Rngs(0))(None) == 0.0
    assert null_condition(None, None) is None
    assert null_condition(3, None)(None) is None
    assert null_condition(None, 2)(None) is None


@pytest.mark.parametrize(
    ("options", "cond", "message"),
    [
        ({"num_classes": 3}, jnp.zeros((2,)), "integer labels"),
        ({"num_classes": 3}, jnp.zeros((2, 1), int), "integer labels"),
        ({"features": 2}, jnp.zeros((2, 3)), r"embedding \[B, 2\], got \(2, 3\)"),
        ({"features": 2}, jnp.zeros((2,)), r"embedding \[B, 2\]"),
    ],
)
def test_refuses_conditions_of_the_wrong_form(options, cond, message):
    embed = ConditionEmbedding(4, rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match=message):
        embed(cond)


def test_refuses_two_kinds_of_condition():
    with pytest.raises(ValueError, match="pass num_classes or"):
        ConditionEmbedding(4, num_classes=3, features=2, rngs=nnx.Rngs(0))
