"""Networks that are told a guidance scale: it does nothing at first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks
from distilljax.core.binding import told, untold
from distilljax.training.state import start_from
from tests.networks.filled import filled

B = 4
SCALES = (0.1, 1000.0, 8)
IMAGE = (4, 4, 1)
BUILDERS = {
    "mlp": lambda **o: networks.mlp((2,), width=8, hidden=8, blocks=1, **o),
    "dit": lambda **o: networks.dit(IMAGE, width=8, depth=1, heads=2, **o),
    "unet": lambda **o: networks.unet(
        IMAGE, channels=4, multipliers=(1,), blocks=1, attention_sizes=(), **o
    ),
}


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_a_scale_changes_nothing_at_first_and_something_later(name):
    plain = BUILDERS[name](num_classes=3)
    aware = BUILDERS[name](num_classes=3, guidance=SCALES)
    assert aware.capabilities == plain.capabilities | {"guidance"}
    params = filled(plain)
    own = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape),
        jax.eval_shape(aware.init, jax.random.key(0)),
    )
    if name == "mlp":
        own = aware.init(jax.random.key(0))
    started = start_from("student", own, "teacher", params)
    shape = (2,) if name == "mlp" else IMAGE
    x = jax.random.normal(jax.random.key(1), (B, *shape))
    t, cond, w = jnp.linspace(0.2, 1.0, B), jnp.arange(B) % 3, jnp.linspace(1.0, 9.0, B)
    run = jax.jit(lambda p, w: aware.apply(p, x, t, told(cond, w)))
    first, other = run(started, w), run(started, w + 0.7)
    assert float(jnp.abs(first).max()) > 1e-2
    np.testing.assert_array_equal(first, other)
    if name == "mlp":
        for network, p in ((plain, params), (aware, started)):
            wanted = jax.jit(network.apply)(p, x, t, cond)
            np.testing.assert_allclose(first, wanted, atol=1e-6)
    learned = filled(aware)
    low, high = run(learned, w), run(learned, w + 0.7)
    assert bool((jnp.abs(low - high).reshape(B, -1).max(1) > 1e-4).all())


def test_scales_stay_in_float32_and_other_conditions_are_kept():
    half = BUILDERS["mlp"](guidance=SCALES, dtype=jnp.bfloat16)
    params, x = filled(half), jnp.ones((1, 2))
    # Neighbours in bfloat16, whose spacing at 5 is 0.03.
    out = [half.apply(params, x, 0.5, told(None, w)) for w in (5.0, 5.01)]
    assert float(jnp.abs(out[0] - out[1]).max()) > 1e-3
    assert untold({"label": 1, "image": 2}) == ({"label": 1, "image": 2}, None)
    assert untold(told({"label": 1, "image": 2}, 3)) == ({"label": 1, "image": 2}, 3)


def test_a_network_without_the_input_refuses_a_scale():
    plain = BUILDERS["mlp"]()
    x = jnp.ones((1, 2))
    with pytest.raises(
        ValueError, match="'mlp' takes no guidance scale; build it with"
    ):
        plain.apply(filled(plain), x, 0.5, told(None, jnp.ones(1)))
