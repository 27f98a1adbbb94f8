"""Every method without conditions, with embeddings and with images as conditions."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import methods, networks, paths
from distilljax.core.binding import Network
from distilljax.core.method import Out
from distilljax.methods import CATALOGUE
from distilljax.training.config import TrainConfig
from distilljax.training.roles import make_setup
from distilljax.training.state import TrainState
from distilljax.training.update import Update
from tests import toy
from tests.methods import cases

B, FEATURES, IMAGE = 8, 3, (4, 4, 1)
CONDITIONS = {
    "none": None,
    "embedding": jnp.ones((B, FEATURES)),
    "image": jnp.ones((B, *IMAGE)),
    "both": {"embedding": jnp.ones((B, FEATURES)), "image": jnp.ones((B, *IMAGE))},
}


def backbone(cond):
    """The tests' network with the leaves of any condition joined to its input."""
    sizes = [math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(cond)]
    inner = toy.mlp((2 + sum(sizes),), hidden=4, second_time=True)

    def apply(params, x, t, c=None, s=None, *, taps=False, rng=None):
        if c is None:
            c = jax.tree.map(lambda a: jnp.zeros((x.shape[0], *a.shape[1:])), cond)
        leaves = [leaf.reshape(x.shape[0], -1) for leaf in jax.tree.leaves(c)]
        assert [leaf.shape[1] for leaf in leaves] == sizes
        joined = jnp.concatenate([x, *leaves], -1)
        out, found = inner.apply(params, joined, t, None, s, taps=True)
        return (out[:, :2], found) if taps else out[:, :2]

    null = None
    if cond is not None:

        def null(c):
            return jax.tree.map(jnp.zeros_like, c)

    capabilities = inner.capabilities | (set() if cond is None else {"null"})
    return dataclasses.replace(
        inner, apply=apply, null=null, capabilities=frozenset(capabilities)
    )


def around(net, shape, kind):
    """Networks by key around a backbone."""
    one = jax.tree.map(lambda a: a[:1], CONDITIONS[kind])
    taps = networks.taps_shape(net, shape, one)
    features = FEATURES if kind in ("embedding", "both") else None
    judge = networks.head(taps, width=4, cond_features=features, kind="patches")
    return {
        "backbone": net,
        "policy": networks.policy(net, shape, components=2),
        "discriminator": judge,
        "log_weight": cases.log_weight(),
        "reward": Network(
            "reward",
            None,
            lambda key: {},
            functions={"value": lambda params, x, c=None: x.reshape(B, -1)[:, 0]},
        ),
    }


def options(name, guided):
    """The small settings of a method, guided or not."""
    known = CATALOGUE[name].factory.__kwdefaults__
    out = dict(cases.CASES[name].options)
    if "guidance" in known:
        out["guidance"] = 1.5 if guided else 1.0
    if "label_dropout" in known:
        out["label_dropout"] = 0.1 if guided else 0.0
    return out


def updates(method, nets, shape, params):
    """``(label, update, trained parameters, memory)`` of every phase and stage."""
    setup = make_setup(method, nets, TrainConfig.of({"batch_size": B}), shape)
    memory = method.memory(B, shape) if method.memory else {}
    state = TrainState(
        params=params,
        opt={},
        ema={},
        memory=memory,
        step=jnp.zeros((), jnp.int32),
        counters={},
        key=jax.random.key(2),
    )
    for i, phases in enumerate((method.phases, *(s.phases for s in method.stages))):
        for phase in phases:
            update = Update(setup, phase, state, {}, {})
            trained = {role: params[role] for role in phase.trains}
            yield (i, phase.name), update, trained, memory


def gradients(method, nets, shape, data, params):
    """Gradients of every phase, by term where the phase merges them."""
    return {
        label: update.gradients(trained, data, memory, jax.random.key(3), 0, {})[0]
        for label, update, trained, memory in updates(method, nets, shape, params)
    }


def values(method, nets, shape, data, params):
    """Values of every term of every phase."""
    out = {}
    for label, update, trained, memory in updates(method, nets, shape, params):
        ctx = update.context(trained, data, memory, jax.random.key(3), 0)
        for term in update.phase.terms:
            found = term.loss(ctx.of(term.name))
            found = found.values if isinstance(found, Out) else found
            out[*label, term.name] = found
    return out


def batch(cond, shape=cases.SHAPE):
    x0 = jax.random.normal(jax.random.key(0), (B, *shape))
    return {"x0": x0} if cond is None else {"x0": x0, "cond": cond}


def inits(method, nets):
    joined = make_setup(method, nets, TrainConfig.of({"batch_size": B}), (2,)).networks
    return lambda key: {role: net.init(key) for role, net in joined.items()}


EVERY = [(name, kind) for name in sorted(CATALOGUE) for kind in ("none", "image")]
EVERY += [(name, "embedding") for name in cases.CORE]
REST = [
    pytest.param(name, "embedding", marks=pytest.mark.full)
    for name in sorted(set(CATALOGUE) - set(cases.CORE))
]


@pytest.mark.parametrize(("name", "kind"), EVERY + REST)
def test_every_method_takes_every_kind_of_condition(name, kind):
    cond = CONDITIONS[kind]
    nets = around(backbone(cond), cases.SHAPE, kind)
    method = methods.build(name, **options(name, guided=cond is not None))
    params = jax.eval_shape(inits(method, nets), jax.random.key(0))
    found = jax.eval_shape(
        lambda p, data: gradients(method, nets, cases.SHAPE, data, p),
        params,
        batch(cond),
    )
    for phase in method.phases:
        grads = found[0, phase.name]
        grads = grads if phase.merge is None else grads[phase.terms[0].name]
        wanted = {role: params[role] for role in phase.trains}
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, wanted)


@pytest.mark.parametrize(
    "name", ["sana_sprint", pytest.param("f_distill", marks=pytest.mark.full)]
)
def test_an_image_network_takes_an_embedding_and_an_image(name):
    """Values are finite, and both parts of the condition matter."""
    cond = CONDITIONS["both"]
    net = networks.dit(
        IMAGE,
        width=8,
        depth=1,
        heads=2,
        path=paths.linear(),
        cond_features=FEATURES,
        image_channels=1,
    )
    nets = around(net, IMAGE, "both")
    method = methods.build(name, **options(name, guided=True))
    init = inits(method, nets)
    shapes = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), shapes
    )
    run = jax.jit(lambda data: values(method, nets, IMAGE, data, params))
    plain = run(batch(cond, IMAGE))
    for key in cond:
        other = run(batch({**cond, key: -cond[key]}, IMAGE))
        for term, value in plain.items():
            assert bool(jnp.all(jnp.isfinite(value))), term
            assert not np.allclose(value, other[term], rtol=1e-4), (term, key)
