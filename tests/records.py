"""Smallest method records, for tests of what is done to records."""

import jax.numpy as jnp

from distilljax import method as m


def loss(ctx):
    return jnp.zeros((ctx.batch_size,))


def small(name="a", term="one", **changes):
    phase = m.Phase("student", ("student",), (m.Term(term, loss),))
    return m.Method(name, {"student": m.Role()}, (phase,))._replace(**changes)
