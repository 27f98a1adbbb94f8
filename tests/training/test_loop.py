import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from distilljax import data
from distilljax.core.method import Stage, Term, check
from distilljax.training import Hooks, Interrupted, cycle, loop, read_metrics, train
from tests.training import small
from tests.training.test_cycle import NETWORKS, imitating
from tests.training.test_state import TEACHER, pointers

CONFIG = {"cycles": 6, "batch_size": 32, "log_every": 2, "student": {"lr": 1e-2}}
QUICK = {"params": None, "progress": False}


def source(count=100):
    x0 = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    return data.arrays(0.1 * x0)


def equal(a, b) -> bool:
    return all(
        np.array_equal(jax.random.key_data(x), jax.random.key_data(y))
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        else np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture
def traces(monkeypatch):
    """Counts how often a cycle is traced."""
    counted, original = [], cycle.run_cycle

    def counting(setup, phases, *args):
        counted.append(phases)
        return original(setup, phases, *args)

    monkeypatch.setattr(cycle, "run_cycle", counting)
    return counted


def test_trains_and_writes(tmp_path, traces, capsys):
    seen = []
    hooks = Hooks(
        sample=lambda view: seen.append(("sample", view.step)),
        evaluate=lambda view: seen.append(("evaluate", view.step)) or {"score": 2.0},
    )
    config = {**CONFIG, "sample_every": 3, "evaluate_every": 4}
    result = train(
        small.regression(), NETWORKS, None, source(), config, tmp_path, hooks=hooks
    )
    assert result.step == 6
    assert int(result.state.step) == 6
    assert len(traces) == 1
    assert seen == [("sample", 3), ("evaluate", 4), ("evaluate", 6), ("sample", 6)]
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records["student/loss"][0] == [1, 2, 4, 6]
    assert records["evaluate/score"] == ([4, 6], [2.0, 2.0])
    assert result.metrics["student/loss"] == records["student/loss"][1][-1]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["cycles"] == 6
    error = capsys.readouterr().err
    assert "cycle 6/6" in error
    assert "cycles/s" in error
    assert "s left" in error


def test_metrics_are_read_a_cycle_late(monkeypatch):
    """A record of a cycle is fetched when the next one is on its way to the device."""
    happened, sent, build, fetch = [], [], loop.build_cycle, jax.device_get

    def counted(*args):
        program = build(*args)

        def dispatch(*inputs):
            state, metrics = program(*inputs)
            sent.append(metrics["skipped_in_a_row"])
            happened.append(("dispatched", len(sent)))
            return state, metrics

        return dispatch

    def fetched(tree):
        read = {id(leaf) for leaf in jax.tree.leaves(tree)}
        cycles = [n for n, leaf in enumerate(sent, 1) if id(leaf) in read]
        happened.extend(("read", n) for n in cycles)
        return fetch(tree)

    monkeypatch.setattr(loop, "build_cycle", counted)
    monkeypatch.setattr(jax, "device_get", fetched)
    config = {**CONFIG, "cycles": 12, "log_every": 1}
    train(small.regression(), NETWORKS, data=source(), config=config, **QUICK)
    dispatched = [number for what, number in happened if what == "dispatched"]
    assert dispatched == list(range(1, 13))
    for n in dispatched[:-1]:
        assert happened.index(("dispatched", n + 1)) < happened.index(("read", n))
    assert ("read", 12) in happened


def test_users_arrays_are_untouched():
    before = jax.tree.map(np.array, TEACHER)
    where = pointers(TEACHER)
    result = train(
        small.critic_and_student(2), NETWORKS, {"teacher": TEACHER}, source(), CONFIG,
        progress=False,
    )  # fmt: skip
    assert pointers(TEACHER) == where == pointers(result.frozen)
    assert equal(TEACHER, before)
    assert not pointers(result.state.params) & where
    assert equal(result.params("teacher"), TEACHER)


def test_evaluation_parameters():
    config = {**CONFIG, "student": {"ema": 0.5, "lr": 0.1}}
    result = train(small.regression(), NETWORKS, data=source(), config=config, **QUICK)
    assert equal(result.params(), result.state.ema["student"])
    assert equal(result.params(ema=False), result.state.params["student"])
    assert not equal(result.params(), result.params(ema=False))


@pytest.mark.parametrize(("given", "ends"), [(False, (2, 4)), (True, (5,))])
def test_stages_compile_once_each_and_resume(tmp_path, traces, capsys, given, ends):
    """A stage that takes more batches, ended in the middle and at its end."""
    method = imitating()
    first = (method.phases[0]._replace(repeat=3),)
    method = check(method._replace(stages=(Stage(4, first),)))
    config = {**CONFIG, "checkpoint": {"every": 1, "keep": 9}}
    stream = (lambda: small.Stream(3)) if given else source
    teacher = {"teacher": TEACHER}
    whole = train(method, NETWORKS, teacher, stream(), config, progress=False)
    assert [len(t) and t[0].repeat for t in traces] == [3, 1]
    for until in ends:

        def stop(view, until=until):
            if view.step == until:
                os.kill(os.getpid(), signal.SIGTERM)

        folder = tmp_path / str(until)
        watched = {**config, "sample_every": 1}
        with pytest.raises(Interrupted) as stopped:
            train(
                method, NETWORKS, teacher, stream(), watched, folder,
                hooks=Hooks(sample=stop), progress=True,
            )  # fmt: skip
        assert stopped.value.code == 128 + signal.SIGTERM
        assert f"SIGTERM after cycle {until}; saved" in capsys.readouterr().err
        again = train(
            method, NETWORKS, teacher, stream(), config, folder, progress=False
        )
        assert equal(again.state, whole.state)


def test_stops_after_too_many_skipped_updates():
    class Broken(small.Stream):
        def __next__(self):
            batch = super().__next__()
            return {"x0": batch["x0"] * np.float32(np.nan if self.index > 3 else 1)}

    config = {**CONFIG, "cycles": 50, "max_skipped": 4}
    with pytest.raises(FloatingPointError, match="4 updates.*student.*student/loss"):
        train(small.regression(), NETWORKS, data=Broken(), config=config, **QUICK)


def test_data_that_ends_or_cannot_resume():
    class Short(small.Stream):
        def __next__(self):
            if self.index == 3:
                raise StopIteration
            return super().__next__()

    with pytest.raises(ValueError, match="data ended before cycle 3 of 6"):
        train(small.regression(), NETWORKS, data=Short(), config=CONFIG, **QUICK)
    with pytest.raises(ValueError, match="get_state and set_state"):
        train(small.regression(), NETWORKS, data=iter([]), config=CONFIG, **QUICK)


def test_second_call_does_nothing_and_more_cycles_continue(tmp_path):
    method = small.regression()
    one = train(method, NETWORKS, None, source(), CONFIG, tmp_path, progress=False)
    two = train(method, NETWORKS, None, source(), CONFIG, tmp_path, progress=False)
    assert equal(one.state, two.state)
    assert two.seconds >= one.metrics["seconds"]
    longer = {**CONFIG, "cycles": 9}
    more = train(method, NETWORKS, None, source(), longer, tmp_path, progress=False)
    whole = train(method, NETWORKS, data=source(), config=longer, **QUICK)
    assert equal(more.state, whole.state)
    assert read_metrics(tmp_path / "metrics.jsonl")["seconds"][0] == [1, 2, 4, 6, 8, 9]


def test_other_config_is_refused_and_nothing_changes(tmp_path):
    method = small.regression()
    train(method, NETWORKS, None, source(), CONFIG, tmp_path, progress=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    other = {**CONFIG, "seed": 3, "student": {"lr": 0.5}}
    with pytest.raises(ValueError, match="left as it is") as error:
        train(method, NETWORKS, None, source(), other, tmp_path, progress=False)
    for text in ("train.seed: 0 -> 3", "train.roles.student.lr: 0.01 -> 0.5"):
        assert text in str(error.value)
    with pytest.raises(ValueError, match="data: .* -> "):
        train(method, NETWORKS, None, source(99), CONFIG, tmp_path, progress=False)
    cosine = {**CONFIG, "student": {"lr": 1e-2, "schedule": "cosine"}}
    with pytest.raises(ValueError, match="schedule.name: constant -> cosine"):
        train(method, NETWORKS, None, source(), cosine, tmp_path, progress=False)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_other_teacher_is_refused(tmp_path):
    args = (source(), CONFIG, tmp_path)
    train(imitating(), NETWORKS, {"teacher": TEACHER}, *args, progress=False)
    other = small.NETWORK.init(jax.random.key(9))
    with pytest.raises(ValueError, match="the teacher.*other parameters"):
        train(imitating(), NETWORKS, {"teacher": other}, *args, progress=False)


def test_a_folder_of_a_run_that_never_started_is_free(tmp_path):
    def broken(ctx):
        raise RuntimeError("no")

    method = imitating(Term("broken", broken))
    args = ({"teacher": TEACHER}, source())
    with pytest.raises(RuntimeError):
        train(method, NETWORKS, *args, CONFIG, tmp_path, progress=False)
    other = {**CONFIG, "cycles": 1, "seed": 5}
    train(imitating(), NETWORKS, *args, other, tmp_path, progress=False)


def test_a_fresh_run_begins_again_in_its_folder(tmp_path):
    method = small.regression()
    train(method, NETWORKS, None, source(), CONFIG, tmp_path, progress=False)
    shutil.rmtree(tmp_path / "checkpoints")
    other = {**CONFIG, "seed": 5}
    with pytest.raises(ValueError, match="holds a run of another config.*fresh=True"):
        train(method, NETWORKS, None, source(), other, tmp_path, progress=False)
    with pytest.raises(ValueError, match="no checkpoint to continue from"):
        train(method, NETWORKS, None, source(), CONFIG, tmp_path, progress=False)
    again = train(
        method, NETWORKS, None, source(), other, tmp_path, progress=False, fresh=True
    )
    expected = train(method, NETWORKS, None, source(), other, progress=False)
    assert equal(again.state, expected.state)
