"""What processes agree on, with the exchange played; real ones: `test_processes`."""

import re

import jax
import numpy as np
import pytest

from distilljax import cli
from distilljax.training import TrainConfig, checks, claim, distributed


@pytest.fixture
def played(monkeypatch):
    """Sets what all processes say in an exchange: of numbers, or of values."""

    def play(rows=None, values=None, process=0):
        count = len(rows if values is None else values)
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda: process)
        if rows is not None:
            monkeypatch.setattr(distributed, "_rows", lambda row: np.asarray(rows))
        if values is not None:
            monkeypatch.setattr(distributed, "of_all", lambda value: values)

    return play


def test_alone_a_signal_acts_at_once():
    meeting = distributed.Meeting(0)
    meeting.after(1, None, 3, False)
    assert (meeting.signal, meeting.ahead) == (None, 3)
    meeting.after(2, 15, 8, False)
    assert (meeting.signal, meeting.ahead) == (15, 8)


@pytest.mark.parametrize("process", [0, 1])
def test_the_next_meeting_follows_from_what_was_exchanged(played, process):
    """The first process's pace holds for all; a signal at any of them ends all."""
    meeting = distributed.Meeting(10)
    played([[0, 4, 3], [0, 7, 2]], process=process)
    meeting.after(11, None, 1 + process, False)
    assert (meeting.signal, meeting.ahead) == (None, 4)
    played([[0, 8, 6], [2, 1, 1]], process=process)
    for step in (12, 13):
        meeting.after(step, 2, 1, False)
        assert (meeting.signal, meeting.ahead) == (None, 4)
    meeting.after(14, None, 1, False)
    assert (meeting.signal, meeting.ahead) == (2, 8)


def test_the_last_cycle_is_always_a_meeting(played):
    meeting = distributed.Meeting(0)
    played([[0, 8, 50], [0, 1, 1]])
    meeting.after(1, None, 1, False)
    played([[0, 8, 50], [15, 1, 1]])
    meeting.after(9, None, 1, False)
    assert meeting.signal is None
    meeting.after(10, None, 1, True)
    assert meeting.signal == 15


def test_what_one_process_raises_all_raise(played):
    played(values=[None, "no space left"], process=0)
    refused = pytest.raises(ValueError, match="process 1 failed to open it: no space")
    with refused, distributed.together("open it"):
        pass
    played(values=[None, "no space left"], process=1)
    own = pytest.raises(OSError, match="no space left")
    with own, distributed.together("open it"):
        raise OSError("no space left")
    played(values=[None, None])
    with distributed.together("open it"):
        pass


def test_values_survive_the_exchange(monkeypatch):
    """Rows have the length of the longest."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    longer = np.frombuffer(b'["other", 3.5]', np.uint8)

    def rows(row):
        if row.dtype == np.int32:
            return np.asarray([row, [len(longer)]])
        return np.stack([row, longer])

    monkeypatch.setattr(distributed, "_rows", rows)
    assert distributed.of_all({"a": 1}) == [{"a": 1}, ["other", 3.5]]


def test_alone_everything_is_here():
    assert distributed.of_all({"a": 1}) == [{"a": 1}]
    assert distributed.of_first([2]) == [2]
    np.testing.assert_array_equal(distributed.whole(jax.numpy.arange(3)), [0, 1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda said: {**said, "data": "b"} if isinstance(said, dict) else said,
            "process 1 was started with another config.*data: a -> b",
        ),
        (
            lambda said: False if said is True else said,
            r"processes \[1\] do not see the run folder.*that all of them share",
        ),
    ],
    ids=["another config", "another disk"],
)
def test_a_folder_that_processes_see_differently(
    monkeypatch, tmp_path, change, message
):
    monkeypatch.setattr(distributed, "of_all", lambda said: [said, change(said)])
    with pytest.raises(ValueError, match=message):
        claim.claim(tmp_path / "run", TrainConfig(), {"data": "a"})


def test_another_teacher_in_one_process(monkeypatch):
    monkeypatch.setattr(distributed, "of_all", lambda said: [said, said + 1])
    with pytest.raises(ValueError, match=r"processes \[1\] were given other param"):
        checks.check_equal(5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distributed"], "no cluster was found.*nothing was given.*--coordinator"),
        (["--processes=2", "--process=0"], "no cluster.*processes=2, process=0"),
        (
            ["--coordinator=host", "--processes=2", "--process=0"],
            "host:port.*got 'host'",
        ),
        (
            ["--coordinator=host:1", "--processes=2", "--process=2"],
            r"0 \.\. processes - 1, got process=2",
        ),
        (["--distributed", "--fresh"], "remove the folder yourself"),
    ],
)
def test_flags_that_do_not_fit(flags, message, capsys, tmp_path, monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)

    def lost(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.")

    # What jax says without a cluster; here its devices are in use already.
    monkeypatch.setattr(jax.distributed, "initialize", lost)
    card = "--config=configs/digits/teacher.py"
    code = cli.main(["train", card, f"--out={tmp_path / 'run'}", *flags])
    assert code == 2
    assert not (tmp_path / "run").exists()
    assert re.search(message, capsys.readouterr().err)


def test_the_environment_may_say_who_is_who(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID must be an integer"):
        distributed.initialize("host:1", 2)
    monkeypatch.setenv("JAX_PROCESS_ID", "5")
    with pytest.raises(ValueError, match="got process=5 and processes=2"):
        distributed.initialize("host:1", 2)
