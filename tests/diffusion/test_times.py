"""Laws of times, grids and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilljax import paths, times
from tests.exact import PATHS

N = 20_000
KEY = jax.random.key(0)


def draw(law, path):
    return np.asarray(law(KEY, (N,), path))


@pytest.mark.parametrize(
    "law",
    [
        times.Uniform(),
        times.central(),
        times.LogitNormal(),
        times.LogNormal(),
        times.ArctanNormal(),
        times.Point(),
        times.Shifted(times.Uniform(), 3.0),
        times.InClock(times.Shifted(times.Uniform(), 5.0)),
        times.Mixture(((0.5, times.Uniform()), (0.5, times.Point()))),
    ],
)
def test_laws_stay_on_the_clock(law):
    for path in PATHS.values():
        t = law(KEY, (3, 5), path)
        assert t.shape == (3, 5)
        assert t.dtype == jnp.float32
        assert float(t.min()) >= np.float32(path.t_min)
        assert float(t.max()) <= np.float32(path.t_max)


@pytest.mark.parametrize(
    "law",
    [
        lambda x: times.Uniform(0.0, x),
        lambda x: times.LogitNormal(x),
        lambda x: times.LogNormal(0.0, x),
        lambda x: times.ArctanNormal(x),
        lambda x: times.Point(x),
        lambda x: times.Choice((1.0, x)),
        lambda x: times.Shifted(times.Uniform(), x),
        lambda x: times.Mixture(((x, times.Uniform()), (0.5, times.Point()))),
        lambda x: times.Pair(diagonal=x),
    ],
)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_laws_of_numbers_that_are_not_finite_are_refused(law, number):
    with pytest.raises(ValueError, match="must"):
        law(number)


def test_uniform_and_central_fill_their_interval():
    t = draw(times.central(0.02), paths.trigflow()) / (np.pi / 2)
    np.testing.assert_allclose(
        [t.min(), t.mean(), t.max()], [0.02, 0.5, 0.98], atol=0.01
    )


def test_logit_normal_has_its_median_and_spread():
    t = draw(times.LogitNormal(-0.4, 1.0), paths.linear())
    logit = np.log(t / (1 - t))
    assert logit.mean() == pytest.approx(-0.4, abs=0.03)
    assert logit.std() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("name", ["linear", "edm", "trigflow_half", "vp"])
def test_log_normal_is_a_law_of_the_noise_level_on_every_path(name):
    path = PATHS[name]
    t = draw(times.LogNormal(-1.0, 0.6), path)
    level = np.log(path.sigma(jnp.asarray(t)) / path.alpha(jnp.asarray(t)))
    assert level.mean() == pytest.approx(-1.0, abs=0.03)
    assert level.std() == pytest.approx(0.6, abs=0.03)


def test_a_shift_moves_times_toward_noise():
    u, t = draw(times.Uniform(), paths.linear()), None
    t = draw(times.Shifted(times.Uniform(), 3.0), paths.linear())
    np.testing.assert_allclose(t, 3 * u / (1 + 2 * u), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_a_law_in_the_clock_of_another_path_keeps_its_noise_levels(name):
    path, linear = PATHS[name], paths.linear()
    law = times.Shifted(times.Uniform(0.1, 0.9), 5.0)
    t = jnp.asarray(draw(times.InClock(law, linear), path))
    np.testing.assert_allclose(
        path.angle(t), linear.angle(jnp.asarray(draw(law, linear))), atol=2e-4
    )


def test_the_shift_of_rectified_flow_on_trigflow():
    """``t = arctan(5 u / (1 - u))``: its median is ``arctan 5``."""
    t = draw(times.InClock(times.Shifted(times.Uniform(), 5.0)), paths.trigflow())
    for level in (0.25, 0.5, 0.75):
        wanted = np.arctan(5.0 * level / (1.0 - level))
        assert abs((t < wanted).mean() - level) < 0.02


def test_a_shifted_grid_has_even_steps_before_the_shift():
    grid, path = times.ShiftedGrid(3.2, 0.5), paths.trigflow()
    found = np.asarray(grid(4, path)) / path.t_max
    raw = found / (3.2 - 2.2 * found)
    np.testing.assert_allclose(raw, [1.0, 5 / 7, 3 / 7, 1 / 7, 0.0], atol=1e-12)
    assert times.ShiftedGrid()(3, path) == times.EvenGrid()(3, path)
    with pytest.raises(ValueError, match="must be positive"):
        times.ShiftedGrid(0.0)


def test_a_table_of_angles_serves_every_path():
    grid = times.TableGrid(((1.5, 1.0),), angles=True)
    for path in PATHS.values():
        t = jnp.asarray(grid(2, path))
        np.testing.assert_allclose(path.angle(t), [1.5, 1.0, 0.0], atol=1e-5)


def test_a_mixture_keeps_its_shares():
    law = times.Mixture(((0.25, times.Point(1.0)), (0.75, times.Uniform(0.0, 0.5))))
    assert np.mean(draw(law, paths.linear()) == 1.0) == pytest.approx(0.25, abs=0.02)
    with pytest.raises(ValueError, match="add up to 1, got 0.5"):
        times.Mixture(((0.5, times.Uniform()),))


def test_a_choice_is_uniform_over_its_times():
    t = draw(times.Choice((0.25, 0.5, 1.0)), paths.linear())
    shares = [np.mean(t == v) for v in (0.25, 0.5, 1.0)]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.02)


def test_pairs_keep_their_order_and_shares():
    law = times.Pair(times.Uniform(), diagonal=0.5, to_data=0.4, from_noise=0.3)
    t, s = (np.asarray(a) for a in law(KEY, (N,), paths.linear()))
    assert np.all(s <= t)
    assert np.mean(s == t) == pytest.approx(0.5, abs=0.02)
    assert np.mean((s == 0) & (s < t)) == pytest.approx(0.5 * 0.4, abs=0.02)
    assert np.mean(t == 1) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("name", ["linear", "trigflow", "edm"])
def test_an_interval_keeps_the_law_of_its_length_and_lies_anywhere(name):
    path = PATHS[name]
    law = times.Interval(times.LogitNormal(-0.8, 1.0))
    t, s = (np.asarray(a) / path.t_max for a in law(KEY, (N,), path))
    assert np.all((s >= 0) & (s <= t) & (t <= 1 + 1e-6))
    logit = np.log((t - s) / (1 - (t - s)))
    assert logit.mean() == pytest.approx(-0.8, abs=0.04)
    assert logit.std() == pytest.approx(1.0, abs=0.04)
    share = s / (1 - (t - s))
    np.testing.assert_allclose(
        np.quantile(share, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02
    )


@pytest.mark.parametrize("bounds", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)])
def test_impossible_intervals_are_refused(bounds):
    with pytest.raises(ValueError, match="fractions with low < high"):
        times.Uniform(*bounds)


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 40), name=st.sampled_from(sorted(PATHS)))
def test_grids_fall_from_noise_to_data(steps, name):
    path = PATHS[name]
    grids = (times.EvenGrid(), times.EvenGrid(0.8), times.TableGrid(((1.0, 0.5),)))
    for grid in (*grids, times.PathGrid(), times.PathGrid(solved=True)):
        t = grid(steps, path)
        assert len(t) == steps + 1
        assert t[-1] == 0.0
        assert all(a > b for a, b in zip(t[:-1], t[1:], strict=True))
    assert times.EvenGrid(0.8)(steps, path)[0] == pytest.approx(0.8 * path.t_max)


@pytest.mark.parametrize("path", [paths.linear(), paths.edm(), paths.trigflow(0.5)])
def test_an_angle_grid_makes_equal_steps_of_the_noise_angle(path):
    for start in (1.0, 0.6):
        grid = times.AngleGrid(start)(4, path)
        angles = np.asarray(path.angle(jnp.asarray(grid)))
        top = start * float(path.angle(jnp.asarray(path.t_max)))
        np.testing.assert_allclose(angles, top * np.linspace(1, 0, 5), atol=1e-5)
    assert times.AngleGrid()(4, path)[0] == path.t_max
    for start in (0.0, 1.1):
        with pytest.raises(ValueError, match="start must lie in"):
            times.AngleGrid(start)


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize(
    "grid", [times.EvenGrid(), times.KarrasGrid(), times.KarrasPoints()]
)
def test_grids_are_numbers_inside_a_traced_loss(grid, name):
    found = []

    @jax.jit
    def loss(x):
        found.append(grid(4, PATHS[name]))
        return x

    loss(1.0)
    assert found[0] == grid(4, PATHS[name])


def test_the_grid_of_edm():
    n, low, high = 18, 0.002, 80.0
    t = times.KarrasGrid()(n, paths.edm())
    i = np.arange(n)
    root = high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))
    np.testing.assert_allclose(t[:-1], root**7, rtol=2e-5)
    assert t[-1] == 0.0
    on_trig = times.KarrasGrid()(n, paths.trigflow(0.5))
    np.testing.assert_allclose(0.5 * np.tan(on_trig[:-1]), root**7, rtol=2e-3)


def test_karras_points_bound_the_segments_and_end_at_the_boundary():
    path, n = paths.edm(), 17
    root = 80 ** (1 / 7) + np.arange(18) / n * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    np.testing.assert_allclose(times.KarrasPoints()(n, path), root**7, rtol=1e-5)
    assert times.KarrasPoints()(1, path) == pytest.approx((80.0, path.boundary))
    assert times.KarrasPoints(end=0.0)(n, path)[-1] == 0.0
    assert times.KarrasPoints()(n, paths.linear())[-1] == 0.0


def test_the_default_grid_is_the_paths():
    path, grid = paths.edm(), times.PathGrid()
    assert grid(1, path) == (80.0, 0.0)
    assert grid(2, path) == pytest.approx((80.0, 2.5152, 0.0), rel=1e-4)
    assert times.PathGrid(solved=True)(18, path) == times.KarrasGrid()(18, path)
    for other in (paths.linear(), paths.trigflow(0.5), paths.vp()):
        assert grid(4, other) == times.EvenGrid()(4, other)
    named = times.PathGrid(levels=((0.821,),))
    assert named(2, path) == (80.0, 0.821, 0.0)
    assert named(3, path) == grid(3, path)
    assert named(2, paths.linear()) == grid(2, paths.linear())
    narrow = grid(4, paths.edm(sigma_max=10.0))
    assert narrow[0] == pytest.approx(10.0)


def test_solver_steps_inside_a_segment_are_even_where_the_path_is():
    assert times.between(1.0, 0.5, 2, paths.linear()) == [1.0, 0.75]
    found = times.between(80.0, 0.0, 4, paths.edm())
    np.testing.assert_allclose(found, 80.0 * (1 - np.arange(4) / 4) ** 7, rtol=1e-6)


def test_a_table_serves_its_numbers_of_steps():
    grid = times.TableGrid(((1.5,), (1.5, 1.1)), times.EvenGrid())
    path = paths.trigflow()
    assert grid(1, path) == (1.5, 0.0)
    assert grid(2, path) == (1.5, 1.1, 0.0)
    assert grid(4, path) == times.EvenGrid()(4, path)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: times.check_times((1.0, 1.0)), "decrease strictly"),
        (lambda: times.check_times((0.5, 1.0)), "decrease strictly"),
        (lambda: times.check_times((1.0,)), "0 steps"),
        (lambda: times.EvenGrid()(0, paths.linear()), "at least 1, got 0"),
        (lambda: times.KarrasGrid()(-1, paths.edm()), "at least 1, got -1"),
        (lambda: times.TableGrid(((1.0,),))(0, paths.linear()), "at least 1, got 0"),
    ],
)
def test_impossible_grids_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_a_grid_is_numbers_inside_a_traced_function():
    for grid in (times.EvenGrid(), times.KarrasGrid(), times.KarrasPoints()):
        for path in PATHS.values():
            wanted = grid(3, path)
            found = jax.jit(lambda g=grid, p=path: jnp.asarray(g(3, p)))()
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_switch_has_two_values():
    switch = times.Switch(3, 0.5, 2.0)
    assert [float(times.value_at(switch, i)) for i in (0, 2, 3, 9)] == [0.5, 0.5, 2, 2]


def test_schedules():
    ramp = times.Ramp(10, 1.0, 3.0)
    assert [float(times.value_at(ramp, k)) for k in (0, 5, 10, 99)] == [1, 2, 3, 3]
    assert float(times.value_at(times.Ramp(0), 0)) == 1.0
    assert float(times.value_at(times.Product(2.0, ramp), 5)) == 4.0
    assert times.value_at(0.5, 3).dtype == jnp.float32
    assert float(jax.jit(lambda k: times.value_at(ramp, k))(5)) == 2.0


def test_laws_are_values():
    assert times.Pair() == times.Pair(times.LogitNormal(-0.4, 1.0))
    assert times.Ramp(10) != times.Ramp(11)
    assert hash(times.TableGrid(((1.0,),))) == hash(times.TableGrid(((1.0,),)))


@pytest.mark.parametrize(
    "grid",
    [
        times.EvenGrid(0.9),
        times.KarrasGrid(0.01, 20.0),
        times.KarrasPoints(0.01, 20.0),
        times.PathGrid(),
    ],
)
@pytest.mark.parametrize("name", ["linear", "edm", "trigflow_half"])
def test_grids_that_grow_have_the_times_of_fixed_ones(name, grid):
    path = PATHS[name]
    for steps in (1, 2, 18):
        at = jax.jit(lambda i, n: grid.at(i, n, path))
        found = at(jnp.arange(steps + 1), jnp.asarray(steps))
        np.testing.assert_allclose(found, grid(steps, path), rtol=2e-5, atol=1e-6)


def test_the_index_of_a_level_inverts_the_grid():
    grid, index = times.KarrasGrid(), jnp.asarray([0.0, 1.0, 7.5, 17.0])
    found = grid.index(grid.ratio(index, jnp.asarray(18)), jnp.asarray(18))
    np.testing.assert_allclose(found, index, atol=1e-4)


def test_arctan_normal_is_log_normal_in_the_clock_of_trigflow():
    law, wanted = times.ArctanNormal(-0.8, 1.6), times.LogNormal(-0.8, 1.6)
    for name in ("trigflow", "linear"):
        share = draw(law, PATHS[name]) / PATHS[name].t_max
        on_circle = draw(wanted, PATHS["trigflow"]) / PATHS["trigflow"].t_max
        np.testing.assert_allclose(share, on_circle, rtol=1e-5)
