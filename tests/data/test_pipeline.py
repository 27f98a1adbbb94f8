"""The pipeline: order, slices, resume, errors, speed."""

import itertools
import threading
import time

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilljax import data


def numbered(n):
    """A source whose sample ``i`` says ``i``."""
    return data.arrays(np.arange(n, dtype=np.float32)[:, None], np.arange(n))


def stream(source, count, **kwargs):
    it = data.batches(source, **kwargs)
    out = [b["cond"] for b in itertools.islice(it, count)]
    it.close()
    return np.stack(out)


class Slow:
    """A user's source without ``take``."""

    sample_shape, num_classes, fields, fingerprint = (1,), 10, ("x0", "cond"), "slow"

    def __init__(self, n, read_threads=None):
        self._inner = numbered(n)
        self.read_threads = read_threads

    def __len__(self):
        return len(self._inner)

    def __getitem__(self, index):
        return self._inner[index]


def test_shapes_and_fields():
    it = data.batches(data.digits(), batch_size=16, stack=3, accumulate=2)
    batch = next(it)
    assert batch["x0"].shape == (3, 2, 16, 8, 8, 1)
    assert batch["x0"].dtype == np.float32
    assert batch["cond"].shape == (3, 2, 16)
    assert batch["cond"].dtype == np.int32
    it.close()


def test_every_epoch_is_a_permutation_across_batch_borders():
    out = stream(numbered(10), 9, batch_size=4, stack=1, seed=5).reshape(-1)
    epochs = out[:30].reshape(3, 10)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != np.arange(10)).any()


def test_fields_of_a_sample_stay_together():
    batch = next(data.batches(numbered(50), batch_size=7, stack=2))
    np.testing.assert_array_equal(batch["x0"][..., 0], batch["cond"])


def test_seed_decides_the_order():
    a, b, c = (stream(numbered(64), 4, batch_size=16, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_without_shuffle_the_order_is_that_of_the_source():
    out = stream(numbered(10), 5, batch_size=4, shuffle=False).reshape(-1)
    np.testing.assert_array_equal(out, np.arange(20) % 10)


def test_the_stream_does_not_depend_on_stacking():
    flat = stream(numbered(40), 12, batch_size=8, seed=1).reshape(-1)
    stacked = stream(numbered(40), 2, batch_size=8, stack=3, accumulate=2, seed=1)
    np.testing.assert_array_equal(stacked.reshape(-1), flat)


def test_offset_continues_under_another_stack():
    whole = stream(numbered(40), 12, batch_size=8, seed=1).reshape(-1)
    rest = stream(numbered(40), 3, batch_size=8, stack=2, seed=1, offset=48)
    np.testing.assert_array_equal(rest.reshape(-1), whole[48:])


def test_processes_share_one_global_stream():
    one = stream(numbered(40), 5, batch_size=8, stack=2, seed=3)
    parts = [
        stream(
            numbered(40),
            5,
            batch_size=8,
            stack=2,
            seed=3,
            process_index=i,
            process_count=4,
        )
        for i in range(4)
    ]
    assert parts[0].shape[-1] == 2
    np.testing.assert_array_equal(np.concatenate(parts, -1), one)


def test_without_repeat_it_ends_and_drops_the_rest():
    it = data.batches(numbered(10), batch_size=4, repeat=False)
    seen = np.concatenate([b["cond"].reshape(-1) for b in it])
    assert len(seen) == 8 == len(set(seen.tolist()))


def test_a_batch_may_exceed_a_repeated_source():
    out = stream(numbered(3), 1, batch_size=8).reshape(-1)
    assert sorted(np.bincount(out[:6]).tolist()) == [2, 2, 2]


@pytest.mark.parametrize("prefetch", [0, 4])
def test_resume_is_exact(prefetch):
    options = dict(batch_size=8, stack=2, seed=9, prefetch=prefetch)
    whole = stream(numbered(20), 9, **options)
    it = data.batches(numbered(20), **options)
    for _ in range(4):
        next(it)
    state = it.get_state()
    it.close()
    again = data.batches(numbered(20), **options)
    next(again)
    again.set_state(state)
    rest = [next(again)["cond"] for _ in range(5)]
    again.close()
    np.testing.assert_array_equal(np.stack(rest), whole[4:])


def test_resume_through_orbax(tmp_path):
    options = dict(batch_size=8, stack=2, seed=9)
    whole = stream(numbered(20), 6, **options)
    it = data.batches(numbered(20), **options)
    for _ in range(3):
        next(it)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(
            3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(it))
        )
        manager.wait_until_finished()
        again = data.batches(numbered(20), **options)
        manager.restore(
            3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(again))
        )
    rest = [next(again)["cond"] for _ in range(3)]
    it.close()
    again.close()
    np.testing.assert_array_equal(np.stack(rest), whole[3:])


def test_a_source_without_take_gives_the_same_stream():
    np.testing.assert_array_equal(
        stream(Slow(20), 4, batch_size=6, seed=1),
        stream(numbered(20), 4, batch_size=6, seed=1),
    )


def test_batches_are_the_callers_own():
    source = numbered(8)
    it = data.batches(source, batch_size=8, shuffle=False)
    next(it)["x0"][:] = -1
    np.testing.assert_array_equal(next(it)["x0"].reshape(-1), np.arange(8))
    it.close()


def test_close_ends_its_thread():
    before = set(threading.enumerate())
    it = data.batches(numbered(8), batch_size=4)
    next(it)
    mine = [t for t in threading.enumerate() if t not in before]
    assert len(mine) == 1
    it.close()
    mine[0].join(5)
    assert not mine[0].is_alive()


def test_a_batch_costs_its_thread_little():
    """500 batches a second need 2 ms each; the processor time is a tenth of that."""
    it = data.batches(data.digits(), batch_size=256)
    for _ in range(20):
        next(it)
    start = time.process_time()
    for _ in range(200):
        next(it)
    spent = (time.process_time() - start) / 200
    it.close()
    assert spent < 1e-3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, r"batch_size must be an integer"),
        ({"batch_size": 4, "stack": 0}, r"stack must be"),
        ({"batch_size": 4, "accumulate": 0}, r"accumulate must be"),
        ({"batch_size": 6, "process_count": 4}, r"multiple of the 4 processes, got 6"),
        ({"batch_size": 4, "process_index": 1}, r"process_index must lie in 0 \.\. 0"),
        ({"batch_size": 4, "seed": -1}, r"seed must be at least 0"),
        ({"batch_size": 11, "repeat": False}, r"10 samples, fewer than.*11"),
        ({"batch_size": 4, "stack": 3, "repeat": False}, r"3 x 1 x 4"),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        data.batches(numbered(10), **kwargs)


def test_refuses_an_empty_source():
    with pytest.raises(ValueError, match="at least one sample"):
        data.batches(Empty(), batch_size=1)


class Empty(Slow):
    """A source without samples."""

    def __init__(self):
        pass

    def __len__(self):
        return 0


def global_stream(n, seed, count):
    """The first ``count`` labels, from one process that takes them singly."""
    return stream(numbered(n), count, batch_size=1, seed=seed).reshape(-1)


@given(
    n=st.integers(1, 30),
    seed=st.integers(0, 2**31),
    per_process=st.integers(1, 5),
    processes=st.integers(1, 4),
    stack=st.integers(1, 3),
    accumulate=st.integers(1, 2),
    resume_at=st.integers(0, 5),
    threads=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=25, deadline=None)
def test_the_order_depends_on_seed_and_source_alone(
    n, seed, per_process, processes, stack, accumulate, resume_at, threads
):
    """Whatever the processes, stacks, threads, epoch borders and interruptions."""
    source = numbered(n) if threads is None else Slow(n, threads)
    count, parts = 6, []
    for index in range(processes):
        options = dict(
            batch_size=per_process * processes,
            stack=stack,
            accumulate=accumulate,
            seed=seed,
            process_index=index,
            process_count=processes,
        )
        it = data.batches(source, **options, prefetch=2)
        got = [next(it)["cond"] for _ in range(resume_at)]
        state = it.get_state()
        it.close()
        again = data.batches(source, **options, prefetch=1)
        again.set_state(state)
        got += [next(again)["cond"] for _ in range(count - resume_at)]
        again.close()
        parts.append(np.stack(got))
    found = np.concatenate(parts, axis=-1).reshape(-1)
    np.testing.assert_array_equal(found, global_stream(n, seed, len(found)))


def test_threads_read_side_by_side_in_order():
    class Sleeping(Slow):
        def __getitem__(self, index):
            time.sleep(0.004)
            return super().__getitem__(index)

    def timed(threads):
        it = data.batches(Sleeping(64, threads), batch_size=64, seed=2, prefetch=0)
        began = time.perf_counter()
        found = next(it)["cond"].reshape(-1)
        spent = time.perf_counter() - began
        it.close()
        return found, spent

    (alone, slow), (together, fast) = timed(1), timed(16)
    np.testing.assert_array_equal(alone, together)
    assert slow > 0.25
    assert fast < 0.5 * slow


class Broken(Slow):
    """A source whose sample 5 raises."""

    name = "broken"

    def __init__(self, n, error, threads=None):
        super().__init__(n, threads)
        self.error = error

    def __getitem__(self, index):
        if index == 5:
            raise self.error
        return super().__getitem__(index)


class BrokenTake(Broken):
    """The same, gathered in one call."""

    def take(self, indices):
        if 5 in indices:
            raise self.error
        return self._inner.take(indices)


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize(
    ("make", "threads"), [(Broken, None), (Broken, 3), (BrokenTake, None)]
)
def test_an_error_in_a_source_reaches_the_caller_with_name_and_index(
    make, threads, prefetch
):
    source = make(8, KeyError("no such row"), threads)
    it = data.batches(source, batch_size=2, shuffle=False, prefetch=prefetch)
    assert next(it)["cond"].tolist() == [[[0, 1]]]
    next(it)
    with pytest.raises(
        ValueError, match=r"source broken: sample 5 .*KeyError: 'no such row'.*repair"
    ) as caught:
        next(it)
    assert isinstance(caught.value.__cause__, KeyError)
    it.close()


@pytest.mark.parametrize("error", [StopIteration(), IndexError("end")])
def test_a_source_that_ends_early_says_so_and_does_not_hang(error):
    it = data.batches(Broken(8, error), batch_size=8)
    with pytest.raises(ValueError, match="sample 5 .*its len is 8; give it the number"):
        next(it)
    it.close()


def test_samples_of_unequal_shape_are_refused():
    class Uneven(Slow):
        name = "uneven"

        def __getitem__(self, index):
            return {"x0": np.zeros(index + 1, np.float32)}

    it = data.batches(Uneven(4), batch_size=2, shuffle=False)
    with pytest.raises(ValueError, match="source uneven: samples 0, 1 must have equal"):
        next(it)
    it.close()
