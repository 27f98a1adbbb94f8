"""The mixture, its units and its exact teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks, paths
from distilljax.bench import draw_mixture, mixture, read_mixture
from distilljax.bench.mixtures import (
    Units,
    exact_teacher,
    given,
    is_replaced,
    of_arrays,
    replaceable_teacher,
)
from distilljax.methods import CATALOGUE, build


@pytest.mark.parametrize("dimension", [1, 2, 64])
def test_a_seed_draws_unequal_components_apart_from_each_other(dimension):
    oracle = draw_mixture(3, dimension)
    weights, means, stds = map(np.asarray, oracle)
    assert means.shape == (8, dimension)
    assert weights.sum() == pytest.approx(1.0, rel=1e-6)
    assert len(set(weights)) == len(set(stds)) == 8
    gaps = np.linalg.norm(means[:, None] - means, axis=-1) + 9.0 * np.eye(8)
    if dimension > 1:
        assert (gaps > 3.0 * (stds[:, None] + stds) * (1 - np.eye(8))).all()
    again, other = draw_mixture(3, dimension), draw_mixture(4, dimension)
    np.testing.assert_array_equal(again.means, oracle.means)
    assert not np.array_equal(other.means, oracle.means)


def test_a_file_is_read_and_its_weights_add_up(tmp_path):
    path = tmp_path / "oracle.npz"
    means = np.array([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    np.savez(path, weights=np.array([1.0, 3.0]), means=means, stds=np.array([0.1, 2]))
    oracle = read_mixture(path)
    np.testing.assert_allclose(oracle.weights, [0.25, 0.75])
    np.testing.assert_allclose(oracle.means, means)
    suite = mixture(oracle=path)
    assert suite.sample_shape == (3,)
    assert suite.settings["weights"] == [0.25, 0.75]


GOOD = {"weights": np.ones(2), "means": np.zeros((2, 3)), "stds": np.ones(2)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"stds": None}, "lacks stds.*weights.*means"),
        ({"means": np.zeros(2)}, r"shapes \(2,\), \(2,\)"),
        ({"means": np.zeros((3, 3))}, r"\(3, 3\)"),
        ({"stds": np.ones(3)}, r"stds must be \[2\]"),
        ({"stds": np.array([1.0, 0.0])}, "stds must be positive"),
        ({"weights": np.array([1.0, -1.0])}, "weights must be positive"),
        ({"means": np.full((2, 3), np.nan)}, "means must be finite"),
    ],
)
def test_a_file_that_is_no_oracle_is_refused(tmp_path, changed, words):
    path = tmp_path / "oracle.npz"
    np.savez(path, **{k: v for k, v in (GOOD | changed).items() if v is not None})
    with pytest.raises(ValueError, match=words):
        read_mixture(path)


def test_a_missing_file_and_a_bad_dimension():
    with pytest.raises(ValueError, match=r"no oracle nowhere\.npz"):
        read_mixture("nowhere.npz")
    with pytest.raises(ValueError, match="dimension must be at least 1"):
        mixture(dimension=0)


def test_in_the_networks_units_the_data_have_mean_0_and_variance_1():
    oracle = of_arrays(
        np.array([0.3, 0.7]), np.array([[10.0, -4.0], [14.0, 4.0]]), np.array([1.0, 2])
    )
    units = Units.of(oracle)
    z = np.asarray(units.inner(oracle).sample(jax.random.key(0), 200_000))
    np.testing.assert_allclose(z.mean(0), 0.0, atol=0.01)
    assert (z**2).mean() == pytest.approx(1.0, abs=0.01)
    x = np.asarray(oracle.sample(jax.random.key(0), 200_000))
    np.testing.assert_allclose(units.outer(z), x, rtol=1e-4, atol=1e-4)


def test_the_teacher_is_exact_and_has_the_networks_features():
    oracle = Units.of(draw_mixture()).inner(draw_mixture())
    sizes = {"width": 8, "hidden": 8, "blocks": 2, "embedding": 8}
    backbone = networks.mlp((2,), **sizes)
    teacher = exact_teacher(oracle, backbone)
    params = teacher.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 2))
    t = jnp.linspace(0.1, 0.9, 5)
    out, taps = teacher.apply(params, x, t, taps=True)
    wanted = oracle.velocity(paths.linear())(x, t)
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(teacher.apply(params, x, t), out)
    own = backbone.apply(params, x, t, taps=True)[1]
    for a, b in zip(taps, own, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_teacher_that_is_replaced_is_exact_until_then():
    oracle = Units.of(draw_mixture()).inner(draw_mixture())
    sizes = {"width": 8, "hidden": 8, "blocks": 2, "embedding": 8}
    backbone = networks.mlp((2,), **sizes)
    teacher = replaceable_teacher(oracle, backbone)
    start = jax.tree.map(lambda v: v + 0.1, backbone.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (5, 2))
    t = jnp.linspace(0.1, 0.9, 5)
    first = given(build("progressive"), start)
    np.testing.assert_allclose(
        teacher.apply(first["teacher"], x, t),
        oracle.velocity(paths.linear())(x, t),
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        teacher.apply(first["student"], x, t), backbone.apply(start, x, t), rtol=1e-5
    )
    replaced = [name for name in CATALOGUE if is_replaced(build(name))]
    assert replaced == ["progressive"]


def test_a_wider_network_has_lower_rates():
    narrow, wide = (mixture(dimension=d, samples=64) for d in (2, 64))
    for name, entry in narrow.entries.items():
        slow, fast = (e.settings(1000) for e in (wide.entries[name], entry))
        assert slow.keys() == fast.keys()
        for role, section in fast.items():
            assert slow[role] == {**section, "lr": pytest.approx(0.4 * section["lr"])}
