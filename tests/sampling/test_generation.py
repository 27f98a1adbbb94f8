"""Batch generation: noise by index, equal batches, resuming, evaluations spent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import generation, paths, solvers
from distilljax.core.binding import Bound, Network
from distilljax.diffusion.times import TableGrid
from distilljax.methods import flow_matching, mean_flow, scm
from distilljax.sampling.generation import (
    Lead,
    check_labels,
    generate,
    initial_noise,
    student_sampler,
    teacher_inverter,
    teacher_sampler,
)
from distilljax.training.cost import matmul_flops
from tests import toy

NET = toy.mlp((2,), second_time=True, num_classes=3)
PARAMS = NET.init(jax.random.key(0))
TEACHER = toy.mlp((2,), num_classes=3)


def echo(params, eps, cond, key):
    """The noise, moved by the label."""
    return eps if cond is None else eps + 100.0 * cond[:, None]


def noisy(params, eps, cond, key):
    return eps + solvers.fresh_noise(key, 0, eps)


def test_noise_depends_on_seed_and_index_alone():
    whole = initial_noise(3, 0, 10, (2,))
    np.testing.assert_array_equal(whole[4:7], initial_noise(3, 4, 3, (2,)))
    assert not np.allclose(whole, initial_noise(4, 0, 10, (2,)))
    assert len(np.unique(np.asarray(whole))) == 20


def test_samples_do_not_depend_on_the_batch_size():
    labels = np.arange(10) % 3
    found = [
        generate(echo, None, sample_shape=(2,), labels=labels, batch_size=b)
        for b in (3, 4, 10, 512)
    ]
    wanted = np.asarray(initial_noise(0, 0, 10, (2,))) + 100.0 * labels[:, None]
    for x in found:
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, wanted, rtol=1e-6)


def test_count_stands_for_labels():
    assert generate(echo, None, sample_shape=(2, 2), count=5).shape == (5, 2, 2)
    with pytest.raises(ValueError, match="count 4 and 3 labels disagree"):
        generate(echo, None, sample_shape=(2,), count=4, labels=[0, 1, 2])


def test_conditions_of_any_kind_and_starts_come_in_batches(tmp_path):
    cond = {"scale": np.arange(5.0), "shift": np.ones((5, 2))}
    start = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)

    def moved(params, eps, cond, key):
        return cond["scale"][:, None] * eps + cond["shift"]

    options = {"sample_shape": (2,), "cond": cond, "batch_size": 2}
    x = generate(moved, None, start=start, **options)
    np.testing.assert_allclose(x, np.arange(5.0)[:, None] * start + 1.0, rtol=1e-6)
    noise = np.asarray(initial_noise(0, 0, 5, (2,)))
    x = generate(moved, None, **options)
    np.testing.assert_allclose(x, np.arange(5.0)[:, None] * noise + 1.0, rtol=1e-6)
    for change, message in (
        ({"labels": [0] * 5}, "labels or cond, got both"),
        ({"count": 4}, "count 4 and 5 cond disagree"),
        ({"start": start[:3]}, "cond 5 and 3 start disagree"),
        ({"start": start[:, :1]}, r"start must be \[count, 2\], got \(5, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(moved, None, **options, **change)


class Cut(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def cut(monkeypatch):
    """Ends a call after some saved batches."""

    def after(batches):
        saved = generation._Store.save

        def save(self, start, x):
            nonlocal batches
            if not batches:
                raise Cut
            batches -= 1
            saved(self, start, x)

        monkeypatch.setattr(generation._Store, "save", save)

    yield after
    monkeypatch.undo()


def test_an_interrupted_call_continues_as_if_unbroken(tmp_path, cut, monkeypatch):
    options = {"sample_shape": (2,), "labels": np.arange(11) % 3, "batch_size": 3}
    whole = generate(noisy, None, **options)
    cut(2)
    with pytest.raises(Cut):
        generate(noisy, None, **options, resume=tmp_path / "parts")
    monkeypatch.undo()
    kept = sorted(p.name for p in (tmp_path / "parts").glob("*.npy"))
    assert kept == ["batch_00000000.npy", "batch_00000003.npy"]

    drawn = generation._noise

    def forbidden(seed, indices, shape):
        assert indices[0] >= 6, "a finished batch was drawn again"
        return drawn(seed, indices, shape)

    monkeypatch.setattr(generation, "_noise", forbidden)
    found = generate(noisy, None, **options, resume=tmp_path / "parts")
    np.testing.assert_array_equal(found, whole)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"batch_size": 2}, {"tag": "other"}, {"labels": [0, 1, 2, 1]}],
)
def test_a_folder_of_another_call_is_refused(tmp_path, cut, monkeypatch, change):
    options = {"sample_shape": (2,), "labels": [0, 1, 2, 0], "batch_size": 3}
    cut(1)
    with pytest.raises(Cut):
        generate(echo, None, **options, resume=tmp_path)
    monkeypatch.undo()
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ValueError, match="batches of another call.*remove it or"):
        generate(echo, None, **{**options, **change}, resume=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], r"labels must lie in 0 \.\. 2, got 0 \.\. 3"),
        ([-1, 0], r"labels must lie in 0 \.\. 2, got -1 \.\. 0"),
        ([0.0, 1.0], "list of integers, got shape .2,. and type float64"),
        ([[0, 1]], r"got shape \(1, 2\)"),
        ([], r"non-empty list of integers, got shape \(0,\)"),
    ],
)
def test_labels_are_checked(labels, message):
    with pytest.raises(ValueError, match=message):
        generate(echo, None, sample_shape=(2,), labels=labels, num_classes=3)


def test_labels_without_a_range_are_kept():
    np.testing.assert_array_equal(check_labels([7, 900], None), [7, 900])


@pytest.mark.parametrize("count", [None, 0, -2])
def test_no_samples_are_refused(count):
    with pytest.raises(ValueError, match=f"count must be at least 1.*got {count}"):
        generate(echo, None, sample_shape=(2,), count=count)


def test_empty_batches_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        generate(echo, None, sample_shape=(2,), count=2, batch_size=0)


def evaluations(sampler, second_time=False):
    """Matrix products of a sampler in forward passes of the network."""
    eps, cond, t = jnp.zeros((4, 2)), jnp.zeros(4, jnp.int32), jnp.zeros(4)
    s = t if second_time else None
    one = matmul_flops(NET.apply, PARAMS, eps, t, cond, s)
    return matmul_flops(sampler, PARAMS, eps, cond, jax.random.key(0)) / one


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
@pytest.mark.parametrize("make", [scm, mean_flow, flow_matching])
def test_one_student_serves_any_number_of_steps(make, steps):
    method = make()
    sampler = student_sampler(method, NET, steps)
    assert evaluations(sampler, method.sampling.two_time) == steps
    labels = np.arange(6) % 3
    x = generate(sampler, PARAMS, sample_shape=(2,), labels=labels)
    assert np.isfinite(x).all()


@pytest.mark.parametrize("make", [scm, mean_flow])
def test_one_program_takes_any_of_several_numbers_of_steps(make):
    """Deterministic and re-noised students end where their own samplers end."""
    method, labels = make(), jnp.asarray([0, 1, 2, 0, 1])
    eps = generation.initial_noise(3, 0, 5, (2,))
    keys = generation.sample_keys(np.uint32(3), np.arange(5, dtype=np.uint32))
    counts = (4, 1, 2)
    program = jax.jit(generation.counted_sampler(method, NET, counts))
    for place, count in enumerate(counts):
        found = program((PARAMS, np.int32(place)), eps, labels, keys)
        own = student_sampler(method, NET, count)(PARAMS, eps, labels, keys)
        np.testing.assert_allclose(found, own, rtol=2e-5, atol=2e-6)
    assert program._cache_size() == 1


def test_the_sampler_follows_grid_and_rule_of_the_method():
    """One jump by hand, and two of them with a grid of one's own."""
    method = mean_flow()
    f = Bound("student", NET, PARAMS).flow_map(jnp.asarray([1, 2]), two_time=True)
    eps = initial_noise(0, 0, 2, (2,))
    run = {"sample_shape": (2,), "labels": [1, 2]}
    x = generate(student_sampler(method, NET, 1), PARAMS, **run)
    np.testing.assert_allclose(x, f(eps, 1.0, 0.0), rtol=2e-5, atol=1e-6)
    grid = TableGrid(((1.0, 0.3),))
    x = generate(student_sampler(method, NET, 2, grid=grid), PARAMS, **run)
    wanted = f(f(eps, 1.0, 0.3), 0.3, 0.0)
    np.testing.assert_allclose(x, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "nfe"),
    [(solvers.Heun(), 50), (solvers.Euler(), 7), (solvers.DPMSolverPP2M(), 5)],
)
def test_a_teacher_spends_its_evaluations(solver, nfe):
    assert evaluations(teacher_sampler(NET, nfe, solver=solver)) == nfe
    guided = teacher_sampler(NET, nfe, solver=solver, guidance=2.0)
    assert evaluations(guided) == 2 * nfe


@pytest.mark.parametrize("nfe", [0, 1, 7])
def test_evaluations_that_a_solver_cannot_spend_are_refused(nfe):
    with pytest.raises(ValueError, match=f"nfe {nfe} cannot be spent by Heun: 2"):
        teacher_sampler(NET, nfe)


def test_a_teacher_takes_the_first_step_and_the_evaluations_add_up():
    lead = Lead(TEACHER, 2, 4, guidance=2.5)
    assert lead.evaluations == 8
    sampler = student_sampler(mean_flow(), NET, 4, lead=lead)
    pair = (PARAMS, TEACHER.init(jax.random.key(1)))
    eps, labels = initial_noise(0, 0, 4, (2,)), jnp.asarray([0, 1, 2, 0])

    def by_hand(pair, eps, labels, key):
        # The teacher in equal steps of the noise angle to 1/2, the student to 0.
        angles = np.linspace(np.pi / 2, np.pi / 4, 3)
        times = [np.sin(a) / (np.sin(a) + np.cos(a)) for a in angles]
        teacher = Bound("teacher", TEACHER, pair[1])
        field = teacher.guided({"cond": labels}, 2.5, kind="velocity")
        x = solvers.solve(field, eps, times, path=TEACHER.path)
        f = Bound("student", NET, pair[0]).flow_map(labels, two_time=True)
        return f(f(x, 0.5, 0.25), 0.25, 0.0)

    inputs = (pair, eps, labels, jax.random.key(0))
    found, wanted = jax.jit(lambda *a: (sampler(*a), by_hand(*a)))(*inputs)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    t = jnp.zeros(4)
    of_teacher = matmul_flops(TEACHER.apply, pair[1], eps, t, labels)
    of_student = matmul_flops(NET.apply, PARAMS, eps, t, labels, t)
    assert matmul_flops(sampler, *inputs) == 8 * of_teacher + 2 * of_student


def test_a_lead_must_leave_the_student_a_step_and_spend_its_evaluations():
    for lead, message in (
        (Lead(NET, 2), "leave the student one: of 2 steps it was given 2"),
        (Lead(NET, 0), "of 2 steps it was given 0"),
        (Lead(NET, 1, 3), "nfe 3 cannot be spent by Heun: 2"),
    ):
        with pytest.raises(ValueError, match=message):
            student_sampler(mean_flow(), NET, 2, lead=lead)


def test_a_teacher_is_inverted_at_the_cost_that_was_asked_for():
    assert evaluations(teacher_inverter(NET, 5)) == 5
    labels, x0 = jnp.asarray([0, 1, 2]), 0.5 * initial_noise(1, 0, 3, (2,))

    @jax.jit
    def there_and_back(x0):
        eps = teacher_inverter(NET, 33)(PARAMS, x0, labels, None)
        again = teacher_sampler(NET, 33, solver=solvers.FireFlow())
        return eps, again(PARAMS, eps, labels, jax.random.key(0))

    eps, back = there_and_back(x0)
    np.testing.assert_allclose(back, x0, atol=1e-3)
    assert np.abs(eps - x0).max() > 0.05
    with pytest.raises(ValueError, match="nfe 1 cannot be spent by FireFlow: 2"):
        teacher_inverter(NET, 1)


def test_given_arrays_reach_the_sampler_by_batch_and_claim_the_folder(
    tmp_path, cut, monkeypatch
):
    def moved(params, eps, cond, key, given):
        return eps + given["by"]

    by = {"by": np.arange(10.0, dtype=np.float32).reshape(5, 2)}
    plain = generate(echo, None, sample_shape=(2,), count=5)
    options = {"sample_shape": (2,), "count": 5, "batch_size": 2}
    found = generate(moved, None, given=by, **options)
    np.testing.assert_allclose(found, plain + by["by"], rtol=1e-6)
    with pytest.raises(ValueError, match="count 5 and 4 given arrays disagree"):
        generate(moved, None, given={"by": by["by"][:4]}, **options)
    cut(1)
    with pytest.raises(Cut):
        generate(moved, None, given=by, **options, resume=tmp_path)
    monkeypatch.undo()
    other = {"by": -by["by"]}
    with pytest.raises(ValueError, match="batches of another call"):
        generate(moved, None, given=other, **options, resume=tmp_path)
    found = generate(moved, None, given=by, **options, resume=tmp_path)
    np.testing.assert_allclose(found, plain + by["by"], rtol=1e-6)


def test_networks_without_a_path_and_steps_below_one_are_refused():
    bare = Network("bare", NET.apply, NET.init)
    with pytest.raises(ValueError, match="'bare' does not say its path"):
        teacher_sampler(bare)
    with pytest.raises(ValueError, match="'bare' does not say its path"):
        student_sampler(mean_flow(), bare, 1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        student_sampler(mean_flow(), NET, 0)
    grid = TableGrid(((0.3, 1.0),))
    with pytest.raises(ValueError, match="decrease strictly from noise to data"):
        student_sampler(mean_flow(), NET, 2, grid=grid)


def test_samples_of_several_steps_do_not_depend_on_the_batch_size():
    """Fresh noise of every step belongs to the sample, not to its place in a batch."""
    network = toy.mlp((2,), path=paths.trigflow())
    params = network.init(jax.random.key(0))
    run = generation.student_sampler(scm(), network, 4)
    options = {"sample_shape": (2,), "count": 8}
    whole, parts = (
        generate(run, params, **options, batch_size=size) for size in (8, 3)
    )
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    assert np.abs(whole - generate(run, params, **options, seed=1)).max() > 0.1


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_seeds_that_would_lose_bits_are_refused(seed):
    with pytest.raises(ValueError, match="seed must lie in 0 .. 4294967295"):
        initial_noise(seed, 0, 2, (2,))
    with pytest.raises(ValueError, match="seed must lie in"):
        generate(noisy, None, sample_shape=(2,), count=1, seed=seed)


def scaled(params, eps, cond, key):
    return params * eps


def test_a_folder_of_another_model_is_refused(tmp_path, cut, monkeypatch):
    options = {"sample_shape": (2,), "count": 4, "batch_size": 2}
    cut(1)
    with pytest.raises(Cut):
        generate(scaled, np.float32(1.0), **options, resume=tmp_path / "parts")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="parameters and inputs differ"):
        generate(scaled, np.float32(2.0), **options, resume=tmp_path / "parts")


def test_a_damaged_batch_is_made_again(tmp_path, cut, monkeypatch):
    options = {"sample_shape": (2,), "count": 6, "batch_size": 2}
    whole = generate(scaled, np.float32(1.0), **options)
    cut(2)
    with pytest.raises(Cut):
        generate(scaled, np.float32(1.0), **options, resume=tmp_path / "parts")
    monkeypatch.undo()
    path = tmp_path / "parts" / "batch_00000002.npy"
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 4
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match="damaged; its samples are made again"):
        found = generate(scaled, np.float32(1.0), **options, resume=tmp_path / "parts")
    np.testing.assert_array_equal(found, whole)


def test_a_folder_in_use_is_refused(tmp_path):
    def second(params, eps, cond, key):
        with pytest.raises(ValueError, match="in use"):
            generate(scaled, np.float32(1.0), **options)
        return eps

    options = {"sample_shape": (2,), "count": 2, "resume": tmp_path / "parts"}
    generate(second, None, **options)


def test_samples_that_are_not_finite_are_no_result(tmp_path):
    def broken(params, eps, cond, key):
        return eps.at[1].set(jnp.nan)

    with pytest.raises(FloatingPointError, match="1 of 3 .* the first is sample 1"):
        generate(broken, None, sample_shape=(2,), count=3)


def test_batches_stay_until_the_samples_are_saved(tmp_path):
    options = {"sample_shape": (2,), "count": 4, "batch_size": 2}
    options["resume"] = parts = tmp_path / "parts"

    def full(x):
        assert x.shape == (4, 2)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        generate(noisy, None, **options, save=full)
    assert len(list(parts.glob("batch_*.npy"))) == 2

    def broken(params, eps, cond, key):
        raise AssertionError("made again")

    seen = []
    found = generate(broken, None, **options, save=seen.append)
    np.testing.assert_array_equal(seen[0], found)
    assert not parts.exists()


@pytest.mark.parametrize("text", ["{", "3", "[1]", b"\xff"])
def test_a_damaged_meta_is_named_and_lets_the_lock_go(tmp_path, text):
    options = {"sample_shape": (2,), "count": 2, "resume": tmp_path}
    write = tmp_path.joinpath("meta.json")
    write.write_bytes(text if isinstance(text, bytes) else text.encode())
    for _ in range(2):
        with pytest.raises(ValueError, match="meta.json is damaged .*remove that fold"):
            generate(noisy, None, **options)
    write.unlink()
    (tmp_path / "mine.txt").write_text("of somebody")
    assert generate(noisy, None, **options).shape == (2, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
