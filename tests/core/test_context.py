"""Named randomness: independent of order, of company, and never drawn twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.core.binding import Bound, Nets
from distilljax.core.context import Context
from distilljax.diffusion.times import Pair, Uniform
from tests import toy


def context(**changes):
    network = toy.mlp()
    nets = Nets({"student": Bound("student", network, network.init(jax.random.key(0)))})
    values = {
        "nets": nets,
        "data": {},
        "step": jnp.asarray(3),
        "repeat": jnp.asarray(0),
        "memory": {},
        "root": jax.random.key(7),
        "batch_size": 5,
        "sample_shape": (2,),
        **changes,
    }
    return Context(**values)


def test_draws_depend_on_names_only():
    a = context().of("term")
    first = a.normal("eps"), a.uniform("u")
    b = context().of("term")
    second = b.uniform("u"), b.normal("eps")
    np.testing.assert_array_equal(first[0], second[1])
    np.testing.assert_array_equal(first[1], second[0])
    other = context().of("other").normal("eps")
    assert not np.allclose(first[0], other)


def test_a_name_is_drawn_once():
    ctx = context().of("term")
    ctx.normal("eps")
    with pytest.raises(ValueError, match="'eps' is drawn twice in 'term'"):
        ctx.uniform("eps")
    context().of("term").normal("eps")


def test_shapes_and_laws():
    ctx = context().of("term")
    assert ctx.normal("a").shape == (5, 2)
    assert ctx.normal("b", jnp.zeros((3, 4))).shape == (3, 4)
    assert ctx.times("t", Uniform(0.2, 0.4)).shape == (5,)
    t, s = ctx.pair("ts", Pair(diagonal=0.0))
    assert bool(jnp.all(s <= t))
    assert ctx.choice("k", 3).shape == ()
    assert ctx.zeros().shape == (5,)


def test_every_draw_of_the_batch_is_constrained():
    seen = []

    def constrain(x):
        seen.append(x.shape)
        return x

    ctx = context(constrain=constrain).of("term")
    ctx.normal("a"), ctx.uniform("b"), ctx.integers("c", 4), ctx.zeros()
    ctx.times("d", Uniform())
    assert len(seen) == 5
    assert all(shape[0] == 5 for shape in seen)


def test_unknown_roles_list_the_near_ones():
    with pytest.raises(AttributeError, match="Did you mean 'student'"):
        _ = context().nets.studnt
    with pytest.raises(KeyError, match="Known: student"):
        _ = context().nets["teacher"]


def test_keys_are_those_of_their_names():
    ctx, other = context().of("draw"), context().of("draw")
    keys = ctx.keys(["a", "b"])
    for key, name in zip(keys, "ab", strict=True):
        np.testing.assert_array_equal(
            ctx.normal_of(key), other.normal(name), strict=True
        )
    with pytest.raises(ValueError, match="'b' is drawn twice"):
        ctx.key("b")
