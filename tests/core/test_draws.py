"""Rollouts meet the student's sampler, trajectories the teacher's flow map."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import oracles, paths, sampling
from distilljax.core.binding import Bound, Nets, Network
from distilljax.core.context import Context
from distilljax.core.draws import (
    Denoised,
    OdeRollout,
    Part,
    Renoise,
    Rollout,
    StoredPairs,
    StoredTrajectory,
    TeacherTrajectory,
)
from distilljax.diffusion.solvers import Euler
from distilljax.diffusion.times import Choice, EvenGrid, Point, TableGrid
from tests import exact

LINEAR = paths.linear()
GRID = TableGrid(((1.0,), (1.0, 0.6), (1.0, 0.8, 0.3)))


def affine(path=LINEAR) -> Network:
    """Student ``D = gain x + rise t + 0.3 label``: its samples stay Gaussian."""

    def apply(params, x, t, cond=None, s=None, **options):
        moved = params["gain"] * x + (params["rise"] * t)[:, None]
        return moved if cond is None else moved + 0.3 * cond[:, None]

    def init(key):
        return {"gain": jnp.asarray(0.5), "rise": jnp.asarray(0.4)}

    return Network("affine", apply, init, path, "x0")


def context(batch_size=8, seed=0, data=None, **networks):
    networks = networks or {"student": affine()}
    return Context(
        nets=Nets({k: Bound(k, n, n.init(seed)) for k, n in networks.items()}),
        data=data or {},
        step=jnp.asarray(0),
        repeat=jnp.asarray(0),
        memory={},
        root=jax.random.key(seed),
        batch_size=batch_size,
        sample_shape=(1,),
    ).of("x")


def sampled(times, cond, key):
    """The student's own sampler through some first steps of a grid."""
    net = affine()
    f = Bound("student", net, net.init(0)).flow_map(cond)
    keys = jax.random.split(key)
    x = LINEAR.start(jax.random.normal(keys[0], (len(cond), 1)), t=times[0])
    return sampling.sample(
        f, x, (*times, 0.0), renoise=sampling.Consistency(), key=keys[1]
    )


def test_slots_meet_the_sampler_in_every_case():
    """Mean and spread of every case and label, against the sampler's."""
    slots, size = (1, 2, 3, 0, 1, 1), 8 * 4000
    cond = jnp.tile(jnp.arange(2), size // 2)
    # In order, labels would be tied to the cases.
    cond = jax.random.permutation(jax.random.key(9), cond)
    ctx = context(size, data={"cond": cond})
    x = np.asarray(Rollout((1, 2, 3), GRID, slots=slots)(ctx)).reshape(-1, 8)
    labels = np.asarray(cond).reshape(-1, 8)
    rows = [GRID(n, LINEAR)[: k + 1] for n in (1, 2, 3) for k in range(n)]
    cases = [row for row, count in zip(rows, slots) for _ in range(count)]
    cases.sort(key=len)
    for column, times in enumerate(cases):
        wanted = np.asarray(sampled(times, cond, jax.random.key(column + 1)))[:, 0]
        for label in (0, 1):
            found = x[labels[:, column] == label, column]
            other = wanted[np.asarray(cond) == label]
            error = 5 * other.std() / np.sqrt(len(found))
            assert abs(found.mean() - other.mean()) < 1.3 * error, (times, label)
            assert abs(found.std() - other.std()) < error, (times, label)


def test_one_case_a_batch_meets_the_sampler_in_every_case():
    draw = jax.jit(lambda seed: Rollout((2,), GRID)(context(4000, seed)))
    cond = jnp.zeros(4000)
    for seed in range(4):
        x = draw(seed)
        k = int(context(1, seed).choice("case", 2))
        wanted = sampled(GRID(2, LINEAR)[: k + 1], cond, jax.random.key(50))
        assert abs(float(x.mean() - wanted.mean())) < 0.06
        assert abs(float(x.std() - wanted.std())) < 0.05


def test_without_slots_a_batch_holds_one_case():
    """The student tells its time of evaluation: the exit step's."""
    clock = dataclasses.replace(affine(), init=lambda key: {"gain": 0.0, "rise": 1.0})
    draw = jax.jit(lambda seed: Rollout((1, 3), GRID)(context(4, seed, student=clock)))
    rows = np.stack([np.asarray(draw(seed))[:, 0] for seed in range(200)])
    np.testing.assert_allclose(rows, rows[:, :1].repeat(4, 1), atol=1e-6)
    counts = {t: int(np.isclose(rows[:, 0], t).sum()) for t in (1.0, 0.8, 0.3)}
    assert sum(counts.values()) == 200
    # Cases (1, 0), (3, 0), (3, 1), (3, 2), each with probability 1/4.
    assert abs(counts[1.0] - 100) < 36
    assert abs(counts[0.8] - 50) < 31
    assert abs(counts[0.3] - 50) < 31


@pytest.mark.parametrize("slots", [None, (2, 1, 1, 0)])
def test_a_timed_rollout_says_from_when_its_samples_are(slots):
    """The student tells the time at which it was evaluated."""
    clock = dataclasses.replace(affine(), init=lambda key: {"gain": 0.0, "rise": 1.0})
    draw = Rollout((1, 3), GRID, slots=slots, timed=True)
    for seed in range(4):
        found = draw(context(8, seed, student=clock))
        assert found["t"].shape == (8,)
        np.testing.assert_allclose(found["x0"][:, 0], found["t"], atol=1e-6)
        plain = dataclasses.replace(draw, timed=False)
        same = plain(context(8, seed, student=clock))
        np.testing.assert_array_equal(same, found["x0"])


def test_a_part_of_a_draw_is_a_draw():
    ctx = context(2, data={"pair": {"end": jnp.ones(2), "start": jnp.zeros(2)}})
    np.testing.assert_array_equal(Part("pair", "end")(ctx), jnp.ones(2))


@pytest.mark.parametrize("slots", [(0, 0, 1), None])
def test_the_gradient_goes_through_the_exit_step_alone(slots):
    def apply(params, x, t, cond=None, s=None, **options):
        return jnp.where(t[:, None] > 0.5, params["early"], params["late"]) * x

    net = Network("split", apply, lambda key: {}, LINEAR, "x0")

    def total(params, seed):
        ctx = context(8, seed)
        nets = Nets({"student": Bound("student", net, params)})
        ctx = dataclasses.replace(ctx, nets=nets, used=set())
        return jnp.sum(Rollout((3,), GRID, slots=slots)(ctx))

    params = {"early": jnp.asarray(0.9), "late": jnp.asarray(0.8)}
    grad = jax.jit(jax.grad(total))
    exits = set()
    for seed in range(1 if slots else 8):
        found = grad(params, seed)
        live = [name for name, g in found.items() if float(g) != 0.0]
        assert len(live) == 1
        exits |= set(live)
    assert exits == ({"late"} if slots else {"early", "late"})


@pytest.mark.parametrize(
    ("steps", "slots", "rows"),
    # Of the third, 11 rows of every 16 would be exact.
    [((1, 2), (1, 1, 2), 2), ((8,), (1,) * 8, 28), ((1, 3), (6, 3, 3, 4), 12)],
)
def test_slots_put_one_network_into_the_program_and_pay_their_own_depth(
    steps, slots, rows
):
    """Rows that the steps before the exits evaluate, of every group."""
    seen, groups = [], 2

    def apply(params, x, t, cond=None, s=None, **options):
        seen.append(len(x))
        return x

    net = Network("seen", apply, lambda key: {}, LINEAR, "x0")
    size = groups * sum(slots)
    ctx = context(size, student=net)
    scans = [
        equation.params["length"]
        for equation in jax.make_jaxpr(
            lambda: Rollout(steps, EvenGrid(), slots=slots)(ctx)
        )().eqns
        if equation.primitive.name == "scan"
    ]
    before, last = sorted(set(seen))
    assert last == size
    assert seen.count(size) == 1
    assert [groups * rows] == [length * before for length in scans]


def test_a_rollout_at_drawn_times_meets_the_sampler_at_those_times():
    """Running minima of a law from pure noise, and the sampler's law at the exit."""
    draw = Rollout((3,), law=Choice((0.5, 0.9)), timed=True)
    run, depths = jax.jit(lambda seed: draw(context(4000, seed))), set()
    for seed in range(6):
        found, ctx = run(seed), context(4000, seed)
        depth = int(ctx.choice("case", 3))
        drawn = [ctx.times(f"simulation{i}", draw.law, LINEAR) for i in (1, 2)]
        rows = np.minimum.accumulate(np.stack([np.ones(4000), *drawn]), 0)
        np.testing.assert_allclose(found["t"], rows[depth], atol=1e-6)
        depths.add(depth)
        # Repeated times are no grid, so that the sampler's rule is applied by hand.
        f = Bound("student", affine(), affine().init(0)).flow_map()
        x = jax.random.normal(jax.random.key(50 + seed), (4000, 1))
        for i in range(depth + 1):
            eps = jax.random.normal(jax.random.key(90 + 7 * seed + i), x.shape)
            after = rows[i + 1] if i < depth else np.zeros(4000)
            x = sampling.Consistency()(f, LINEAR, x, rows[i], after, eps)
        for last in set(rows[depth]):
            a, b = (np.asarray(v)[rows[depth] == last] for v in (found["x0"], x))
            error = 5.0 * b.std() / np.sqrt(len(b))
            assert abs(a.mean() - b.mean()) < 1.5 * error
            assert abs(a.std() - b.std()) < 1.5 * error
    assert len(depths) > 1


def test_drawn_times_take_no_slots():
    with pytest.raises(ValueError, match="takes no slots.*leave one"):
        Rollout((1, 2), law=Point(), slots=(1, 1, 1))


def test_slots_must_fit_steps_and_batch():
    with pytest.raises(ValueError, match="slots must be 3 integers"):
        Rollout((1, 2), slots=(1, 1))
    with pytest.raises(ValueError, match="batch 8 must be a multiple .* = 3"):
        Rollout((1, 2), GRID, slots=(1, 1, 1))(context(8))


def test_renoise_shares_one_point():
    x0 = jnp.full((8, 1), 2.0)
    found = Renoise(Point(0.25))(context(8, data={"x0": x0}))
    np.testing.assert_allclose(found["t"], 0.25)
    np.testing.assert_allclose(found["x_t"], 0.75 * x0 + 0.25 * found["eps"], rtol=1e-6)


@pytest.mark.parametrize("path", [LINEAR, paths.trigflow()])
def test_states_lie_on_the_teachers_trajectory(path):
    oracle = exact.gaussian()
    nets = {
        "student": oracles.network(oracle, path),
        "teacher": oracles.network(oracle, LINEAR),
    }
    ctx = dataclasses.replace(context(8, **nets), sample_shape=(2,))
    found = TeacherTrajectory(3, 32, path=path)(ctx)
    times = EvenGrid()(3, path)
    assert found["times"] == times[:-1]
    phi = oracle.flow_map(path)
    start = found["states"][0]
    for state, t in zip(found["states"], times):
        np.testing.assert_allclose(state, phi(start, times[0], t), atol=1e-3)
    np.testing.assert_allclose(found["end"], phi(start, times[0], 0.0), atol=1e-3)
    rough = TeacherTrajectory(3, 1, solver=Euler(), path=path)(
        dataclasses.replace(ctx, used=set())
    )
    np.testing.assert_array_equal(rough["states"][0], start)
    assert float(jnp.abs(rough["end"] - found["end"]).max()) > 1e-2


@pytest.mark.parametrize("segments", [1, 3])
def test_stored_trajectories_are_read_as_the_teachers_own(segments):
    net = oracles.network(exact.gaussian(), LINEAR)
    ctx = dataclasses.replace(context(8, student=net, teacher=net), sample_shape=(2,))
    wanted = TeacherTrajectory(segments, 4)(ctx)
    data = {"x0": wanted["end"]}
    if segments == 1:
        draw, data["eps"] = StoredPairs(), wanted["states"][0]
    else:
        draw = StoredTrajectory(segments)
        data["states"] = jnp.moveaxis(wanted["states"], 0, 1)
        data["times"] = jnp.tile(jnp.asarray(wanted["times"]), (8, 1))
    assert draw.fields == set(data)
    found = draw(dataclasses.replace(ctx, data=data))
    for name in ("states", "end"):
        np.testing.assert_array_equal(found[name], wanted[name])
    for t, time in zip(found["times"], wanted["times"], strict=True):
        np.testing.assert_allclose(t, time, rtol=1e-6)


def test_trajectories_carry_no_gradient():
    def end(scale):
        oracle = oracles.Gaussian(scale, jnp.asarray(0.5))
        net = oracles.network(oracle, LINEAR)
        found = TeacherTrajectory(2, 1)(context(4, student=net, teacher=net))
        return jnp.sum(found["end"]) + jnp.sum(found["states"])

    assert float(jax.grad(end)(jnp.asarray(1.0))) == 0.0


def test_a_step_of_the_trajectory_meets_the_deterministic_sampler():
    ctx = context(64)
    found = OdeRollout((1, 3), GRID)(ctx)
    eps = dataclasses.replace(ctx, used=set()).normal("start")
    net = affine()
    f = Bound("student", net, net.init(0)).flow_map(None)
    met = set()
    for times in (GRID(1, LINEAR), GRID(3, LINEAR)):
        for k in range(len(times) - 1):
            of = (found["t"] == times[k]) & (found["s"] == jnp.float32(times[k + 1]))
            x = sampling.sample(
                f,
                LINEAR.start(eps, t=times[0]),
                times[: k + 2],
                renoise=sampling.Deterministic(),
            )
            np.testing.assert_allclose(found["x_s"][of], x[of], atol=1e-5)
            met |= {(len(times) - 1, k)} if bool(of.any()) else set()
    assert met == {(1, 0), (3, 0), (3, 1), (3, 2)}


def test_a_step_of_the_trajectory_has_its_own_gradient_alone():
    """``x0 = gain x + rise t``: the slope in the gain is the state that came."""
    net = affine()
    draw = OdeRollout((3,), GRID)

    def total(params, row):
        ctx = context(16)
        bound = Bound("student", net, params)
        ctx = dataclasses.replace(ctx, nets=Nets({"student": bound}))
        found = draw(ctx)
        return found["x0"][row, 0], found

    for row in range(4):
        params = net.init(0)
        slope, found = jax.grad(total, has_aux=True)(params, row)
        state = (found["x0"][row, 0] - 0.4 * found["t"][row]) / 0.5
        np.testing.assert_allclose(slope["gain"], state, rtol=1e-4)
        np.testing.assert_allclose(slope["rise"], found["t"][row], rtol=1e-5)


def test_random_ends_lie_inside_the_step():
    found = OdeRollout((2,), EvenGrid(), random_end=True)(context(256))
    low = jnp.where(found["t"] == 1.0, 0.5, 0.0)
    share = (found["s"] - low) / (found["t"] - low)
    assert 0.0 <= float(share.min()) < 0.05
    assert 0.85 < float(share.max()) < 0.91


def test_predictions_from_noised_data_start_at_the_times_of_the_grid():
    x0 = exact.normal(1, 64, 1).astype(jnp.float32)
    ctx = context(64, data={"x0": x0})
    found = Denoised(2, EvenGrid())(ctx)
    eps = dataclasses.replace(ctx, used=set()).normal("eps", x0)
    rows = [0.5 * LINEAR.noise(x0, eps, t) + 0.4 * t for t in (1.0, 0.5)]
    near = jnp.stack([jnp.abs(found - row)[:, 0] < 1e-5 for row in rows])
    assert bool(jnp.all(near.any(0)))
    assert 20 < int(near[0].sum()) < 44
