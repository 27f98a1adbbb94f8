import threading
import time

import numpy as np
import pytest

from distilljax import data
from distilljax.data import readers
from distilljax.data.pipeline import readers as readers_of


def mine():
    return [t for t in threading.enumerate() if t.name == "distilljax_read"]


def ended(seconds=5.0):
    """Whether the threads that read end."""
    until = time.monotonic() + seconds
    while mine() and time.monotonic() < until:
        time.sleep(0.01)
    return not mine()


def test_results_are_in_order_and_the_first_error_is_raised():
    pool = readers.Readers(3)

    def square(x):
        time.sleep(0.001 * (7 - x))
        if x >= 5:
            raise KeyError(x)
        return x * x

    assert pool.map(square, range(5), "squares") == [0, 1, 4, 9, 16]
    with pytest.raises(KeyError, match="5"):
        pool.map(square, range(7), "squares")
    assert len(mine()) == 3
    pool.close()
    assert ended()


def test_threads_end_with_what_holds_them():
    pool = readers.Readers(2)
    pool.map(abs, [1], "it")
    del pool
    assert ended()


def test_what_hangs_is_named_and_nothing_waits_for_it(monkeypatch):
    monkeypatch.setattr(readers, "PATIENCE", 0.05)
    monkeypatch.setattr(readers, "_LOOK", 0.02)
    pool, stop = readers.Readers(1, timeout=0.3), threading.Event()
    began = time.monotonic()
    with (
        pytest.warns(UserWarning, match=r"photos: nothing came .* up to 0.3 s"),
        pytest.raises(TimeoutError, match=r"photos: nothing came for 0.3 s.*data_time"),
    ):
        pool.map(lambda _: stop.wait(), [0], "photos")
    assert 0.3 < time.monotonic() - began < 3.0
    assert all(thread.daemon for thread in mine())
    pool.close()
    with pytest.raises(readers.Ended):
        pool.map(abs, [1], "photos")
    stop.set()
    assert ended()


def test_slow_is_not_hanging(monkeypatch):
    monkeypatch.setattr(readers, "_LOOK", 0.02)
    pool = readers.Readers(1, timeout=0.4)
    began = time.monotonic()
    slow = lambda x: time.sleep(0.1) or x  # noqa: E731
    assert pool.map(slow, range(7), "slow") == list(range(7))
    assert time.monotonic() - began > 0.6
    pool.close()


def test_a_timeout_of_the_functions_own_is_passed_on():
    pool = readers.Readers(1, timeout=9.0)

    def raises(_):
        raise TimeoutError("of the bucket")

    with pytest.raises(TimeoutError, match="of the bucket"):
        pool.map(raises, [0], "it")
    pool.close()


class Stuck:
    """A source that hangs in a sample, until it is told to go on."""

    name, sample_shape, num_classes = "stuck", (2,), None
    fields, fingerprint = ("x0",), "stuck"

    def __init__(self, at, threads=None):
        self.at, self.go, self.read_threads = at, threading.Event(), threads

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index >= self.at:
            self.go.wait()
        return {"x0": np.full(2, index, np.float32)}


class StuckTake(Stuck):
    def take(self, indices):
        if indices.max() >= self.at:
            self.go.wait()
        return {"x0": np.ones((len(indices), 2), np.float32) * indices[:, None]}


@pytest.mark.parametrize(
    ("make", "threads"), [(Stuck, None), (Stuck, 3), (StuckTake, None)]
)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_source_that_hangs(monkeypatch, make, threads, prefetch):
    monkeypatch.setattr(readers, "_LOOK", 0.02)
    source = make(8, threads)
    pool = readers_of(source, 0.2)
    it = data.batches(source, batch_size=4, shuffle=False, prefetch=prefetch, pool=pool)
    assert next(it)["x0"][0, 0, :, 0].tolist() == [0, 1, 2, 3]
    next(it)
    with pytest.raises(TimeoutError, match=r"source stuck: samples 8, 9, 10, 11: not"):
        next(it)
    assert it.get_state()["next_index"] == 2
    it.close()
    pool.close()
    others = [t for t in threading.enumerate() if "ThreadPool" in t.name]
    for thread in others:
        thread.join(5.0)
        assert not thread.is_alive()
    source.go.set()
    assert ended()
