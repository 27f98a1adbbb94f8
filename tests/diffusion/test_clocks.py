"""Laws and grids of the releases, and the choice among them by path."""

import jax
import numpy as np
import pytest

from distilljax import methods, paths
from distilljax.diffusion.clocks import (
    CLOCK_GRID,
    ByPath,
    KarrasSteps,
    KarrasUniform,
    Timesteps,
)
from distilljax.diffusion.times import EvenGrid, LogNormal, Uniform, central
from tests.exact import PATHS

KEY, N = jax.random.key(0), 20_000


def draw(law, path):
    return np.asarray(law(KEY, (N,), path))


@pytest.mark.parametrize(
    "law",
    [KarrasUniform(), KarrasUniform(0.0, 0.8, points=None), Timesteps(0.02, 0.98)],
)
def test_laws_stay_on_every_clock(law):
    for path in (*PATHS.values(), paths.vp_scaled_linear()):
        t = law(KEY, (3, 5), path)
        assert t.shape == (3, 5)
        assert t.dtype == np.float32
        assert float(t.min()) >= np.float32(path.t_min)
        assert float(t.max()) <= np.float32(path.t_max)


def test_indices_are_those_of_the_table_both_ends_included():
    t = draw(KarrasUniform(0.02, 0.98, points=50), paths.edm())
    table = 0.002 ** (1 / 7) + np.arange(50) / 49 * (80 ** (1 / 7) - 0.002 ** (1 / 7))
    np.testing.assert_allclose(np.unique(t), table[1:50] ** 7, rtol=1e-4)
    counts = np.unique(t, return_counts=True)[1]
    assert counts.min() > 0.7 * N / 49
    assert (t < 1.6).mean() == pytest.approx(0.45, abs=0.02)


def test_places_are_continuous_without_a_table():
    t = draw(KarrasUniform(0.0, 0.8, points=None), paths.edm())
    assert len(np.unique(t)) > 0.99 * N
    place = (t ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
    assert place.max() == pytest.approx(0.8, abs=0.001)
    assert place.mean() == pytest.approx(0.4, abs=0.01)


def test_a_karras_law_is_one_of_the_noise_level_on_every_path():
    quantiles = []
    for path in (paths.edm(), paths.linear(), paths.trigflow(), paths.vp_cosine()):
        t = KarrasUniform(0.1, 0.6)(KEY, (N,), path)
        ratio = np.asarray(path.sigma(t) / path.alpha(t))
        quantiles.append(np.quantile(ratio, (0.1, 0.5, 0.9)))
    for found in quantiles[1:]:
        np.testing.assert_allclose(found, quantiles[0], rtol=0.01)


def test_timesteps_are_those_of_a_network_of_discrete_time():
    t = draw(Timesteps(0.02, 0.98), paths.vp())
    np.testing.assert_allclose(np.unique(t), np.arange(21, 982) / 1000, rtol=1e-6)


def test_a_value_by_path_is_that_of_the_family():
    law = ByPath(central(), edm=LogNormal(), vp=Timesteps())
    for path, wanted in (
        (paths.edm(sigma_d=1.0), LogNormal()),
        (paths.vp(), Timesteps()),
        (paths.vp_cosine(), Timesteps()),
        (paths.vp_scaled_linear(), Timesteps()),
        (paths.linear(), central()),
        (paths.trigflow(), central()),
        (paths.bridge_linear(0.5), central()),
    ):
        assert law.of(path) == wanted
        found, own = law(KEY, (8,), path), wanted(KEY, (8,), path)
        np.testing.assert_array_equal(found, own)
    assert ByPath(Uniform()).of(paths.edm()) == Uniform()


def test_few_steps_go_down_evenly_in_the_clock_of_the_network():
    edm = CLOCK_GRID(4, paths.edm())
    assert edm[0] == pytest.approx(80.0, rel=1e-6)
    table = np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 1000) ** 7
    np.testing.assert_allclose(edm[:-1], table[[999, 749, 499, 249]], rtol=1e-4)
    assert edm[-1] == 0.0
    for path in (paths.linear(), paths.vp(), paths.trigflow()):
        assert CLOCK_GRID(4, path) == EvenGrid()(4, path)
    assert len(KarrasSteps(points=4)(2, paths.edm())) == 3


@pytest.mark.parametrize("law", [KarrasUniform, Timesteps])
def test_shares_out_of_order_are_refused(law):
    with pytest.raises(ValueError, match="shares of a table with low < high"):
        law(0.9, 0.1)


MATCHING = ("dmd2", "sid", "gdmd", "diff_instruct", "dmd", "f_distill", "ladd")


@pytest.mark.parametrize("name", MATCHING)
def test_no_method_draws_or_steps_evenly_in_sigma(name):
    """Half of DMD2's levels on EDM lie below 1.6, where 2 % of [0, 80] do."""
    defaults = methods.CATALOGUE[name].factory.__kwdefaults__
    laws = [k for k in ("law", "critic_law", "gan_law") if k in defaults]
    assert laws
    for law in laws:
        share = (draw(defaults[law], paths.edm()) < 1.6).mean()
        assert share > (0.2 if name == "ladd" else 0.4), law
    times = defaults["grid"](2, paths.edm())
    assert times[1] < 0.3 * times[0]
