"""Every pair of methods: who composes, and that gradients are sums, in float64."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import pytest

from distilljax.core.composition import compose
from distilljax.methods import CATALOGUE
from tests.methods import cases
from tests.methods.played import play

pytestmark = pytest.mark.usefixtures("x64")

POLICIES = {name for name in CATALOGUE if name == "pi_flow"}
PAIRS = list(itertools.combinations(CATALOGUE, 2))
# One of every way in which two methods meet: critics alike and apart, two laws of one
# draw, terms of one name, merged gradients, targets, teachers that move, learned
# weights, two memories.
SHOWN = [
    ("dmd2", "gdmd"),
    ("dmd2", "ladd"),
    ("sid", "tdm"),
    ("cm_cd", "shortcut"),
    ("ctm", "ect"),
    ("progressive", "diff_instruct"),
    ("scm", "sana_sprint"),
    ("f_distill", "mean_flow"),
    ("facm", "de_cm"),
]
# Thirty in all, from all over the table.
FURTHER = [pair for pair in PAIRS[::17] if not POLICIES & set(pair)][:21]


@functools.cache
def method(name):
    return cases.method(name)


def found(method, **given):
    """The student's gradient, as the trainer takes it."""
    played = play(method, given=given)
    gradients, merge = played.gradients(), played.update.phase.merge
    gradients = gradients if merge is None else merge(gradients, jnp.asarray(0))
    params = {**played.update.resting, **played.update.frozen}
    return gradients["student"], params


@functools.cache
def alone(name):
    return found(method(name))


def weighted_sum(first, second):
    weights = {first: 2.0, second: 0.5}
    (a, params), (b, others) = alone(first), alone(second)
    wanted = jax.tree.map(lambda x, y: 2.0 * x + 0.5 * y, a, b)
    joined = compose(method(first), method(second), weights=weights)
    known = {**others, **params}
    own = {
        f"{name}_{role}": known[role]
        for name in (first, second)
        for role in method(name).roles
        if f"{name}_{role}" in joined.roles
    }
    got, _ = found(joined, **own)
    size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted))
    assert size > 0
    chex.assert_trees_all_close(got, wanted, rtol=1e-10, atol=1e-12 * size)


@pytest.mark.parametrize("pair", SHOWN, ids="+".join)
def test_the_gradient_of_a_pair_is_the_weighted_sum(pair):
    weighted_sum(*pair)


@pytest.mark.full
@pytest.mark.parametrize("pair", FURTHER, ids="+".join)
def test_the_gradient_of_further_pairs_is_the_weighted_sum(pair):
    weighted_sum(*pair)


def test_all_pairs_compose_but_those_whose_students_cannot_be_one():
    for first, second in PAIRS:
        if POLICIES & {first, second}:
            with pytest.raises(ValueError, match="network of the student differs"):
                compose(method(first), method(second))
        else:
            joined = compose(method(first), method(second))
            assert set(method(first).roles) <= {
                role.removeprefix(f"{first}_") for role in joined.roles
            }


def traced(pair):
    """Shapes of the gradient of a pair, without numbers."""
    joined = compose(*(method(name) for name in pair))
    return jax.eval_shape(lambda: found(joined)[0])


@pytest.mark.full
@pytest.mark.parametrize("first", [name for name in CATALOGUE if name not in POLICIES])
def test_every_pair_traces(first):
    wanted = jax.tree.map(lambda x: (x.shape, x.dtype), alone(first)[0])
    for pair in PAIRS:
        if pair[0] == first and not POLICIES & set(pair):
            shapes = jax.tree.map(lambda x: (x.shape, x.dtype), traced(pair))
            assert shapes == wanted


def test_three_methods_and_more_compose():
    names = ("dmd2", "ladd", "sid", "ctm", "progressive", "f_distill", "scm")
    joined = compose(*(method(name) for name in names))
    assert joined.name == "+".join(names)
    terms = [term.name for term in joined.phases[-1].terms]
    assert (
        len(set(terms))
        == len(terms)
        == sum(len(method(name).phases[-1].terms) for name in names)
    )
    assert {"fake_score", "sid_fake_score", "progressive_teacher"} <= set(joined.roles)
