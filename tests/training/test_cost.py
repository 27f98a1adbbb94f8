import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.core.method import Method, Phase, Role, Term, check
from distilljax.training import make_setup
from distilljax.training.config import TrainConfig
from distilljax.training.cost import (
    cycle_evaluations,
    forward_flops,
    matmul_flops,
    run_evaluations,
)
from tests import toy
from tests.training import small

A, B = jnp.zeros((4, 8)), jnp.zeros((8, 16))
PRODUCT = 2 * 4 * 8 * 16


def test_products_and_batched_products():
    assert matmul_flops(jnp.matmul, A, B) == PRODUCT
    assert matmul_flops(jax.jit(jnp.matmul), A, B) == PRODUCT
    many = jax.vmap(jnp.matmul, in_axes=(0, None))
    assert matmul_flops(many, jnp.zeros((3, 4, 8)), B) == 3 * PRODUCT


def test_unused_products_are_not_counted():
    def fn(a, b):
        unused = jnp.sin(a @ b)
        return a.sum() + 0 * jax.lax.stop_gradient(b).sum(), unused

    assert matmul_flops(lambda a, b: fn(a, b)[0], A, B) == 0
    assert matmul_flops(lambda a, b: jax.jit(fn)(a, b)[0], A, B) == 0


def test_loops_and_branches():
    def loop(a, b):
        body = lambda c, _: (c + jnp.sum(a @ b), None)  # noqa: E731
        return jax.lax.scan(body, 0.0, None, length=5)[0]

    assert matmul_flops(loop, A, B) == 5 * PRODUCT

    def branch(a, b):
        twice = lambda: jnp.sum(a @ b) + jnp.sum((a + 1) @ b)  # noqa: E731
        return jax.lax.cond(a[0, 0] > 0, twice, lambda: jnp.sum(a @ b))

    assert matmul_flops(branch, A, B) == 2 * PRODUCT

    def endless(a, b):
        step = lambda c: c + jnp.sum(a @ b) + 1  # noqa: E731
        return jax.lax.while_loop(lambda c: c < 9, step, 0.0)

    with pytest.raises(ValueError, match="while loop"):
        matmul_flops(endless, A, B)
    assert matmul_flops(endless, A, B, trips=2.5) == 2.5 * PRODUCT


def test_derivatives():
    square = lambda a, b: jnp.sum((a @ b) ** 2)  # noqa: E731
    assert matmul_flops(jax.grad(square, (0, 1)), A, B) == 3 * PRODUCT
    remat = jax.grad(jax.checkpoint(square), (0, 1))
    assert matmul_flops(remat, A, B) == 3 * PRODUCT
    tangent = lambda a, b: jax.jvp(lambda a: a @ b, (a,), (a,))  # noqa: E731
    assert matmul_flops(tangent, A, B) == 2 * PRODUCT


def test_convolutions():
    x, k = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def conv(x, k, stride=1):
        return jax.lax.conv_general_dilated(
            x, k, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    forward = 2 * 27 * 2 * 8 * 8 * 5
    assert matmul_flops(conv, x, k) == forward
    loss = lambda x, k: jnp.sum(conv(x, k) ** 2)  # noqa: E731
    assert matmul_flops(jax.grad(loss, (0, 1)), x, k) == 3 * forward
    strided = lambda x, k: conv(x, k, 2)  # noqa: E731
    assert matmul_flops(strided, x, k) == forward // 4
    loss = lambda x, k: jnp.sum(strided(x, k) ** 2)  # noqa: E731
    assert matmul_flops(jax.grad(loss, (0, 1)), x, k) == 3 * forward // 4


def counted(method, networks=None, **config):
    networks = {"backbone": toy.mlp((2,), hidden=256)} if networks is None else networks
    config = TrainConfig.of({"batch_size": 8, "cycles": 10, **config})
    stacked = config.stacked(method.trained)
    shape = (3, stacked, 8 // stacked)
    batch = {"x0": jax.ShapeDtypeStruct((*shape, 2), jnp.float32)}
    return make_setup(method, networks, config, (2,), batch=batch)


def test_gradient_costs_three_forwards_a_sample():
    setup = counted(small.regression())
    assert forward_flops(setup) == 2 * 256 * (2 + 7 + 256 + 2)
    cost = cycle_evaluations(setup, setup.method.phases)
    # The first layers have no gradient for their input.
    assert 0.97 * 24 < cost <= 24
    split = counted(small.regression(), student={"accumulate": 4})
    np.testing.assert_allclose(cycle_evaluations(split, split.method.phases), cost)
    np.testing.assert_allclose(run_evaluations(setup), 10 * cost)


def test_tangent_costs_one_forward_and_repeats_count():
    def loss(ctx):
        x = ctx.data["x0"]
        velocity = ctx.nets.teacher.velocity()
        return (
            jax.jvp(lambda x: velocity(x, 0.5), (x,), (x,))[1] ** 2
            + (ctx.nets.student.params["out"]["b"])
        )

    phase = Phase("student", ("student",), (Term("tangent", loss),), repeat=3)
    method = check(Method("m", {"teacher": Role(), "student": Role()}, (phase,)))
    setup = counted(method)
    cost = cycle_evaluations(setup, method.phases)
    # Primal and tangent of the hidden layers; the last layer's primal is not needed.
    assert 0.95 * 48 < cost <= 48
