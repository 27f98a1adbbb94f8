"""Attention: one function, two schedules, derivatives of both kinds."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.networks.attention import IMPLEMENTATIONS, attention

pytestmark = pytest.mark.usefixtures("x64")
NAMES = sorted(IMPLEMENTATIONS)


def qkv(batch=2, queries=7, keys=5, heads=4, size=3, groups=None, out=None, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (
        (batch, queries, heads, size),
        (batch, keys, groups or heads, size),
        (batch, keys, groups or heads, out or size),
    )
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


def by_hand(q, k, v, mask=None, scale=None):
    q, k, v = (np.asarray(a) for a in (q, k, v))
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seen = np.ones((1, 1, 1, 1), bool) if mask is None else np.asarray(mask)
    seen = np.broadcast_to(seen, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    ratio = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        visible = seen[b, h, i]
        if not visible.any():
            continue
        scores = scale * k[b, visible, h // ratio] @ q[b, i, h]
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights / weights.sum() @ v[b, visible, h // ratio]
    return out


def masks(batch=2, heads=4, queries=7, keys=5):
    rng = np.random.default_rng(1)
    full = rng.random((batch, heads, queries, keys)) < 0.6
    full[0, 0, 2] = False
    return {
        "none": None,
        "keys": jnp.asarray(rng.random((batch, 1, 1, keys)) < 0.7),
        "causal": jnp.tril(jnp.ones((1, 1, queries, keys), bool)),
        "full": jnp.asarray(full),
    }


def chosen(name, **options):
    return functools.partial(attention, implementation=name, chunk=3, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["none", "keys", "causal", "full"])
def test_it_is_the_sum_over_visible_keys(name, kind):
    q, k, v = qkv(out=6)
    mask = masks()[kind]
    found = jax.jit(chosen(name))(q, k, v, mask=mask)
    np.testing.assert_allclose(found, by_hand(q, k, v, mask), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_heads_share_keys(name):
    q, k, v = qkv(groups=2)
    np.testing.assert_allclose(
        chosen(name, scale=0.7)(q, k, v), by_hand(q, k, v, scale=0.7), rtol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["none", "full"])
def test_both_modes_agree_with_finite_differences(name, kind):
    f = chosen(name, mask=masks()[kind])
    chex.assert_numerical_grads(f, qkv(), order=1, rtol=1e-5, atol=1e-6)


def loss(f, primals, tangents):
    """Of the kind of sCM: the gradient of a residual that holds a stopped tangent."""
    out, moved = jax.jvp(f, primals, tangents)
    return jnp.mean((out - jax.lax.stop_gradient(out + moved)) ** 2)


@pytest.mark.parametrize("kind", ["none", "keys", "full"])
def test_schedules_agree_through_a_jvp_inside_a_gradient(kind):
    primals, tangents = qkv(), qkv(seed=3)
    found = [
        jax.jit(jax.grad(functools.partial(loss, chosen(name, mask=masks()[kind]))))(
            primals, tangents
        )
        for name in ("xla", "chunked")
    ]
    chex.assert_trees_all_close(*found, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_second_order_vmap_and_scan_pass(name):
    f = chosen(name)
    q, k, v = qkv()

    def tangent(q):
        return jnp.sum(jax.jvp(lambda q: f(q, k, v), (q,), (jnp.ones_like(q),))[1] ** 2)

    step = 1e-6 * qkv(seed=5)[0]
    slope = jnp.vdot(jax.grad(tangent)(q), step)
    np.testing.assert_allclose(
        slope, (tangent(q + step) - tangent(q - step)) / 2, rtol=1e-4
    )
    stacked = jnp.stack([q, 2 * q])
    over = jax.vmap(lambda q: f(q, k, v))(stacked)
    _, scanned = jax.lax.scan(lambda c, q: (c, f(q, k, v)), 0, stacked)
    np.testing.assert_allclose(over, scanned, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_identities_of_the_tangent(name):
    """Linear in the tangents; one vector added to every key's tangent adds nothing."""
    f, primals, (tq, tk, tv) = chosen(name), qkv(), qkv(seed=4)
    plain = jax.jvp(f, primals, (tq, tk, tv))[1]
    shifted = jax.jvp(f, primals, (tq, tk + 5.0, tv))[1]
    np.testing.assert_allclose(plain, shifted, rtol=1e-9, atol=1e-12)
    doubled = jax.jvp(f, primals, (2 * tq, 2 * tk, 2 * tv))[1]
    np.testing.assert_allclose(2 * plain, doubled, rtol=1e-12)
    zero = jax.tree.map(jnp.zeros_like, primals)
    assert not np.any(jax.jvp(f, primals, zero)[1])


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_keeps_its_dtype_and_stays_close(name):
    q, k, v = qkv(queries=40, keys=40, size=16)
    half = [a.astype(jnp.bfloat16) for a in (q, k, v)]
    found = chosen(name)(*half)
    assert found.dtype == jnp.bfloat16
    wanted = np.asarray(attention(q, k, v))
    error = np.asarray(found, np.float64) - wanted
    assert np.linalg.norm(error) < 0.02 * np.linalg.norm(wanted)


def temporaries(name, length):
    shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    f = functools.partial(attention, implementation=name, chunk=64)
    step = jax.jit(jax.grad(functools.partial(loss, f)))
    compiled = step.lower((shape,) * 3, (shape,) * 3).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_chunks_need_memory_in_proportion_to_the_length():
    assert temporaries("chunked", 2048) < 2.3 * temporaries("chunked", 1024)
    assert temporaries("xla", 2048) > 3.5 * temporaries("xla", 1024)
    assert temporaries("chunked", 2048) < 0.25 * temporaries("xla", 2048)


def test_auto_takes_chunks_for_long_sequences():
    def scores(length):
        shape = jax.ShapeDtypeStruct((1, length, 1, 2), jnp.float32)
        return str(jax.make_jaxpr(attention)(shape, shape, shape))

    assert "scan" not in scores(1024)
    assert "scan" in scores(1025)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "cudnn"}, "unknown implementation 'cudnn'.*auto"),
        ({"mask": jnp.ones((2, 4, 7, 5))}, "mask must be boolean.*float"),
        ({"mask": jnp.ones((7, 5), bool)}, r"mask must be boolean.*\(7, 5\)"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"k": jnp.ones((2, 5, 3, 3))}, r"attention wants q .*\(2, 5, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    q, k, v = qkv()
    options = {"q": q, "k": k, "v": v, **change}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        attention(options.pop("q"), options.pop("k"), options.pop("v"), **options)
