"""What a run refuses of networks before the first cycle."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen

from distilljax import losses, methods, paths
from distilljax.core.binding import Network
from distilljax.networks import functionalize
from distilljax.training import train
from tests import toy
from tests.training import small

CONFIG = {"cycles": 1, "batch_size": 32}
KIND = {"path": paths.linear(), "prediction": "velocity"}


def trained(network, method=None, labels=0, params=None, **config):
    method = small.regression() if method is None else method
    stream = small.Stream(labels=labels)
    return train(
        method,
        {"backbone": network},
        params,
        stream,
        {**CONFIG, **config},
        progress=False,
    )


def linear(params, x, t, cond=None, s=None, *, taps=False, rng=None):
    return jnp.concatenate([x, t[:, None]], -1) @ params["w"]


def weights(key):
    return {"w": 0.1 * jax.random.normal(key, (3, 2))}


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [(lambda: jnp.arange(3), "int32"), (lambda: jax.random.key(0), "key<fry>")],
)
def test_a_parameter_without_gradient_is_named(leaf, kind):
    network = Network(
        "n", linear, lambda key: {**weights(key), "table": leaf()}, **KIND
    )
    with pytest.raises(
        ValueError, match=rf"'student': parameter 'table' .*'n'.*{kind}"
    ):
        trained(network)


def test_a_module_that_draws_says_how_it_gets_its_key():
    class Drop(linen.Module):
        @linen.compact
        def __call__(self, x, t, cond=None):
            return linen.Dense(2)(linen.Dropout(0.5, deterministic=False)(x))

    example = (jnp.zeros((1, 2)), jnp.zeros(1), None)
    network = functionalize(Drop(), example=example, **KIND)
    with pytest.raises(ValueError, match="'Drop': .*deterministic=rng is None"):
        trained(network)


@jax.custom_vjp
def fused(x):
    return jnp.tanh(x)


fused.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


@pytest.mark.parametrize("inside", [lambda f: f, jax.jit, jax.checkpoint])
def test_a_network_without_forward_mode_is_named_with_the_way_out(inside):
    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        return inside(fused)(linear(params, x, t))

    network = Network("flash", apply, weights, **KIND)
    params = {"teacher": weights(jax.random.key(0))}
    options = {"learned_weight": False, "tangent": None}
    with pytest.raises(ValueError, match="'student'.*'flash'.*finite_difference"):
        trained(network, methods.scm(**options), params=params)
    other = methods.scm(derivative=losses.finite_difference(), **options)
    if inside is not jax.checkpoint:
        bare = dataclasses.replace(network, capabilities=frozenset())
        assert trained(bare, other, params=params).step == 1


def test_labels_that_no_network_reads_are_refused_unless_that_is_meant():
    plain = Network("n", linear, weights, **KIND)
    words = r"int32\[\].*no network reads them \(n\).*num_classes=.*ignore_cond=True"
    with pytest.raises(ValueError, match=words):
        trained(plain, labels=3)
    assert trained(plain, labels=3, ignore_cond=True).step == 1
    with pytest.raises(ValueError, match="ignore_cond .* it has none"):
        trained(plain, ignore_cond=True)
    reads = toy.mlp((2,), num_classes=3)
    with pytest.raises(ValueError, match="ignore_cond .*role 'student' reads them"):
        trained(reads, labels=3, ignore_cond=True)
