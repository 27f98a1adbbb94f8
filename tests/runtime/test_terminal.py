"""Streams that lack characters, and streams that are not there."""

import io
import sys
import time

import pytest

from distilljax import cli, terminal
from distilljax.training.writers import Progress


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_character_that_the_encoding_lacks_is_escaped(name, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding="ascii"))
    terminal.prepare()
    print("süß.npz", file=getattr(sys, name), flush=True)
    assert raw.getvalue() == b"s\\xfc\\xdf.npz\n"


@pytest.mark.parametrize("names", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_closed_streams_write_nowhere(names, monkeypatch):
    for name in names:
        monkeypatch.setattr(sys, name, None)
    assert cli.main([]) == 0
    assert cli.main(["report", "--out=/nowhere"]) == 2
    assert all(getattr(sys, name).writable() for name in names)


def test_a_closed_stream_is_no_terminal(monkeypatch):
    """Without the front door: a run started from Python in a daemon."""
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        assert not terminal.is_terminal()
    monkeypatch.setattr(sys, "stderr", None)
    bar = Progress("run", 3, 0)
    bar.say("a line")
    bar.note(3, {"a/loss": 1.0})
    bar.close()


def test_what_takes_long_is_said_now_and_then():
    seen = []
    with terminal.Waiting(seen.append, 0.02) as waiting:
        time.sleep(0.2)
    count = len(seen)
    assert count >= 2
    assert seen == sorted(seen)
    assert waiting.seconds >= 0.2
    time.sleep(0.06)
    assert len(seen) == count
