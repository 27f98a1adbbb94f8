"""The adapter: modules as pure functions, precision, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from distilljax import networks, paths
from distilljax.networks.adapter import pure

X = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
T = jnp.array([0.1, 0.5, 0.9])
PLACE = {"path": paths.linear(), "prediction": "velocity"}


class Plain(nnx.Module):
    """One layer; a list of modules gives its parameters integer keys."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])

    def __call__(self, x, t, cond):
        for layer in self.layers:
            x = layer(x)
        return x * t[:, None]


class Codes(nnx.Module):
    """Returns what it was given as second time."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x, t, cond, s=None, *, taps=False, rng=None):
        out = jnp.broadcast_to(s[:, None], x.shape) * self.scale.get_value()
        return (out, {"t": t, "x": x}) if taps else out


class Noisy(nnx.Module):
    """Drops out."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, t, cond, *, rng=None):
        return self.dropout(self.linear(x), rngs=rng, deterministic=rng is None)


class WithState(nnx.Module):
    """Breaks the rule on state."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, t, cond):
        return self.dropout(self.linear(x))


class WrongSignature(nnx.Module):
    """Knows no condition."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x, t):
        return self.linear(x)


class NoCall(nnx.Module):
    """Cannot be called."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)


class Linen(linen.Module):
    """The linen form of `Plain`, with one layer."""

    @linen.compact
    def __call__(self, x, t, cond=None):
        return linen.Dense(2)(x) * t[:, None]


def test_parameters_are_plain_nested_dicts_with_text_keys():
    network = networks.functionalize(Plain, **PLACE)
    params = jax.jit(network.init)(jax.random.key(0))
    assert set(params["layers"]) == {"0", "1"}
    assert type(params["layers"]["0"]["kernel"]) is type(X)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda a: a.shape, shapes)
    other = network.init(jax.random.key(1))
    assert (other["layers"]["0"]["kernel"] != params["layers"]["0"]["kernel"]).all()


def test_call_is_that_of_the_module():
    module = Plain(nnx.Rngs(0))
    network = networks.functionalize(module, **PLACE)
    params = network.init(jax.random.key(5))
    np.testing.assert_allclose(network.apply(params, X, T), module(X, T, None))
    np.testing.assert_allclose(jax.jit(network.apply)(params, X, T), module(X, T, None))
    assert network.name == "Plain"
    # Copies: donating them must leave the module alive.
    kernel = module.layers[0].kernel.get_value()
    assert params["layers"]["0"]["kernel"] is not kernel


def test_parameters_are_those_that_nnx_draws():
    """The keys are counted by a number here, and are nnx's own."""
    params = pure(Plain, name="plain").init(jax.random.key(4))
    state = nnx.state(Plain(nnx.Rngs(jax.random.key(4))), nnx.Param)
    flat = {path[1:]: leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    for (index, name), value in flat.items():
        np.testing.assert_array_equal(params["layers"][str(index)][name], value)
    assert not jnp.array_equal(*(params["layers"][i]["kernel"] for i in "01"))


def test_linen_modules_are_accepted():
    example = (X, T, None)
    network = networks.functionalize(Linen(), example=example, **PLACE)
    params = network.init(jax.random.key(0))
    out = network.apply(params, X, T)
    kernel = params["Dense_0"]["kernel"]
    np.testing.assert_allclose(out, X @ kernel * T[:, None], rtol=1e-5)
    with pytest.raises(ValueError, match=r"example=\(x, t, cond\)"):
        networks.functionalize(Linen(), **PLACE)


@pytest.mark.parametrize(
    ("code", "expected"), [("gap", T - 0.05), ("end", T * 0 + 0.05)]
)
def test_time_codes(code, expected):
    network = networks.functionalize(
        Codes, capabilities=frozenset({"second_time"}), time_code=code, **PLACE
    )
    params = network.init(jax.random.key(0))
    out = network.apply(params, X, T, None, 0.05)
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-6)
    at_t = network.apply(params, X, T, None, T)
    np.testing.assert_array_equal(network.apply(params, X, T), at_t)


def test_the_clock_comes_before_the_code():
    network = networks.functionalize(
        Codes, capabilities=frozenset({"second_time"}), clock=jnp.log, **PLACE
    )
    out = network.apply(network.init(jax.random.key(0)), X, T, None, T / 2)
    np.testing.assert_allclose(out, jnp.full_like(X, jnp.log(2.0)), rtol=1e-5)


def test_precision_at_the_boundary():
    network = networks.functionalize(
        Codes,
        capabilities=frozenset({"second_time", "taps"}),
        dtype=jnp.bfloat16,
        **PLACE,
    )
    out, taps = network.apply(
        network.init(jax.random.key(0)), X / 3, T, None, taps=True
    )
    assert out.dtype == taps["x"].dtype == taps["t"].dtype == jnp.float32
    np.testing.assert_array_equal(taps["t"], T)
    rounded = (X / 3).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(taps["x"], rounded)


def test_scalar_and_low_precision_times_become_float32_per_sample():
    network = networks.functionalize(
        Codes, capabilities=frozenset({"second_time", "taps"}), **PLACE
    )
    params = network.init(jax.random.key(0))
    for t in (0.5, jnp.bfloat16(0.5), 1):
        taps = network.apply(params, X, t, taps=True)[1]
        assert taps["t"].shape == (3,)
        assert taps["t"].dtype == jnp.float32


def test_dropout_follows_the_key_only():
    network = networks.functionalize(
        Noisy, capabilities=frozenset({"jvp", "dropout"}), **PLACE
    )
    params = network.init(jax.random.key(0))
    run = jax.jit(network.apply)
    still = run(params, X, T)
    one, two = (run(params, X, T, rng=jax.random.key(i)) for i in (1, 2))
    assert (one != still).any()
    assert (one != two).any()
    np.testing.assert_array_equal(one, run(params, X, T, rng=jax.random.key(1)))
    tangent = jax.jvp(
        lambda x: network.apply(params, x, T, rng=jax.random.key(1)), (X,), (X,)
    )[1]
    np.testing.assert_allclose(tangent, one, rtol=1e-5)


def test_merging_leaves_no_trace_in_the_program():
    network = networks.functionalize(Plain, **PLACE)
    params = network.init(jax.random.key(0))

    def by_hand(params, x, t):
        for i in "01":
            layer = params["layers"][i]
            x = x @ layer["kernel"] + layer["bias"]
        return x * t[:, None]

    def compiled(fn):
        cost = jax.jit(fn).lower(params, X, T).compile().cost_analysis()
        return cost["flops"], cost["bytes accessed"]

    assert compiled(network.apply) == compiled(by_hand)


def test_refuses_parameters_that_do_not_fit():
    network = networks.functionalize(Plain, name="student", **PLACE)
    params = network.init(jax.random.key(0))
    del params["layers"]["1"]["bias"]
    with pytest.raises(ValueError, match=r"'student'.*missing \['layers/1/bias'\]"):
        network.apply(params, X, T)
    params = network.init(jax.random.key(0))
    params["second"] = {"kernel": X}
    with pytest.raises(ValueError, match=r"not its own \['second/kernel'\]"):
        network.apply(params, X, T)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (WithState, {}, r"only state, got \['dropout/rngs/.*at call time"),
        (WrongSignature, {}, r"module\(x, t, cond\), got \(x, t\)"),
        (Plain, {"capabilities": frozenset({"taps"})}, r"module\(x, t, cond, taps=\)"),
        (Plain, {"capabilities": frozenset({"second_time"})}, r"cond, s=\)"),
        (Plain, {"capabilities": frozenset({"dropout"})}, r"cond, rng=\)"),
        (Plain, {"capabilities": frozenset({"tap"})}, r"unknown capability 'tap'"),
        (Codes, {"time_code": "gaps"}, r"unknown time_code 'gaps'. Did you mean 'gap'"),
        (lambda rngs: X, {"name": "n"}, r"must return an nnx.Module.*got ArrayImpl"),
        (NoCall, {}, r"with a __call__, got NoCall"),
        (3, {}, r"a linen module, got int"),
    ],
)
def test_refuses_modules_that_break_the_contract(module, options, message):
    with pytest.raises(ValueError, match=message):
        networks.functionalize(module, **PLACE, **options)


def test_refuses_a_second_time_it_cannot_take():
    network = networks.functionalize(Plain, **PLACE)
    params = network.init(jax.random.key(0))
    with pytest.raises(ValueError, match="no second time"):
        network.apply(params, X, T, None, T)


def test_pure_gives_any_call():
    init, call, _ = pure(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    params = init(jax.random.key(0))
    np.testing.assert_allclose(
        call(params, X), X @ params["kernel"] + params["bias"], rtol=1e-6
    )
