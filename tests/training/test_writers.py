import csv
import json
import math
import time

import jax
import numpy as np
import pytest

from distilljax.training import read_metrics, writers
from distilljax.training.writers import Csv, JsonLines, Progress, open_writers


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_records_after_the_restored_step_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = JsonLines(path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0 / step})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    writer = JsonLines(path, 2)
    writer.write(3, {"loss": 9.0})
    writer.close()
    assert read_metrics(path) == {"loss": ([1, 2, 3], [1.0, 0.5, 9.0])}


def test_records_that_are_gone_are_missed(tmp_path):
    with pytest.warns(UserWarning, match="holds no record of the cycles 1 to 2"):
        JsonLines(tmp_path / "metrics.jsonl", 2).close()


def test_numbers_that_json_lacks(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path)
    writer.write(1, {"a": math.nan, "b": np.float32(2.0), "c": np.inf, "d": 3})
    writer.close()
    record = json.loads(path.read_text())
    assert record == {"step": 1, "a": None, "b": 2.0, "c": None, "d": 3}
    assert math.isnan(read_metrics(path)["a"][1][0])


def test_a_table_takes_names_that_appear_later(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    writer = Csv(path)
    writer.write(1, {"loss": 0.1, 'odd, "name"': 2})
    writer.write(2, {"loss": np.float32(0.1), "evaluate/score": math.nan})
    writer.write(3, {"evaluate/score": math.inf})
    writer.close()
    lines = path.read_text().splitlines()
    assert lines[0] == 'step,loss,"odd, ""name""",evaluate/score'
    rows = table(path)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [row["loss"] for row in rows] == ["0.1", repr(float(np.float32(0.1))), ""]
    assert [row["evaluate/score"] for row in rows] == ["", "nan", "inf"]
    assert [row['odd, "name"'] for row in rows] == ["2", "", ""]


def test_a_table_drops_rows_after_the_restored_step_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.csv"
    writer = Csv(path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with path.open("a") as file:
        file.write("4,0.")
    writer = Csv(path, 2)
    writer.write(3, {"loss": 9.0, "new": 1.0})
    writer.close()
    assert table(path) == [
        {"step": "1", "loss": "1.0", "new": ""},
        {"step": "2", "loss": "2.0", "new": ""},
        {"step": "3", "loss": "9.0", "new": "1.0"},
    ]
    Csv(path).close()
    assert table(path) == []
    assert path.read_text() == "step,loss,new\n"


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writers = open_writers(tmp_path, 0, ("tensorboard", "wandb"), {})
    writers.write(1, {"loss": 1.0})
    writers.images(1, {"samples": np.zeros((2, 2, 3), np.uint8)})
    writers.close()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    writers = open_writers(tmp_path, 0, (), {})
    writers.write(1, {"loss": 1.0})
    writers.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == {"loss": ([1], [1.0])}
    assert table(tmp_path / "metrics.csv") == [{"step": "1", "loss": "1.0"}]


def test_progress_lines(capsys):
    progress = Progress("run", 4, 2, pause=0.0)
    progress.update(3)
    progress.note(3, {"student/loss": 0.25, "grad_norm/student": 3.0})
    progress.close()
    line = capsys.readouterr().err
    assert "run: cycle 3/4, student/loss 0.25," in line
    assert "grad_norm" not in line
    Progress("run", 4, 0, show=False).note(4, {"student/loss": 1.0})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "old", "new", "steps"),
    [
        ("metrics.jsonl", b'"loss": 0.5', b'"l\xffss": 0.5', [1, 3]),
        ("metrics.jsonl", b'{"step": 2', b'{"step": "2"', [1, 3]),
        ("metrics.jsonl", b'{"step": 2', b'["step": 2', [1, 3]),
        ("metrics.csv", b"2,0.5", b"2,0.\xff", [1, 3]),
        ("metrics.csv", b"\n2,", b"\n#,", [1, 3]),
        ("metrics.csv", b"step,", b"stdp,", []),
    ],
)
def test_damaged_records_are_left_out_with_a_warning(tmp_path, name, old, new, steps):
    path, kind = tmp_path / name, {"jsonl": JsonLines, "csv": Csv}[name.split(".")[1]]
    writer = kind(path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0 / step})
    writer.close()
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.warns(UserWarning, match=f"{name}' is damaged"):
        writer = kind(path, 3)
    writer.write(4, {"loss": 0.25})
    writer.close()
    if kind is JsonLines:
        assert read_metrics(path)["loss"][0] == [*steps, 4]
    else:
        assert [int(row["step"]) for row in table(path)] == [*steps, 4]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, for rates."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_rates_and_remaining_time_leave_compilations_out(clock, capsys):
    progress = Progress("run", 10, 0, pause=0.0)

    def cycle(step, seconds):
        clock[0] += seconds
        progress.note(step, {"a/loss": 1.0})
        progress.update(step)
        return capsys.readouterr().err

    with progress.compiling(1):
        clock[0] += 60.0
    shown = capsys.readouterr().err
    assert "run: compiling cycle 1 ...\n" in shown
    assert shown.endswith("run: compiled in 60.0 s\n")
    # The first ends while nothing is counted.
    assert cycle(1, 5.0) == "run: cycle 1/10, a/loss 1\n"
    cycle(2, 2.0)
    assert cycle(3, 2.0) == "run: cycle 3/10, a/loss 1, 0.5 cycles/s, 14 s left\n"
    # A hook that compiles, and another stage.
    clock[0] += 30.0
    progress.skip(30.0)
    assert cycle(4, 2.0) == "run: cycle 4/10, a/loss 1, 0.5 cycles/s, 12 s left\n"
    with progress.compiling(5):
        clock[0] += 60.0
    capsys.readouterr()
    assert cycle(5, 2.0) == "run: cycle 5/10, a/loss 1\n"
    assert cycle(6, 4.0) == "run: cycle 6/10, a/loss 1, 0.25 cycles/s, 16 s left\n"


def test_a_bar_takes_compilations_out_too(clock, monkeypatch, capsys):
    monkeypatch.setattr(writers, "is_terminal", lambda: True)
    progress = Progress("run", 10, 0)
    with progress.compiling(1):
        clock[0] += 60.0
    progress.update(1)
    clock[0] += 8.0
    progress.update(5)
    assert progress._bar.format_dict["elapsed"] == pytest.approx(8.0)
    progress.close()
    assert "compiled in 60.0 s" in capsys.readouterr().err


def test_a_long_compilation_says_so(capsys):
    progress = Progress("run", 10, 0, pause=0.1)
    with progress.compiling(1):
        time.sleep(0.35)
    assert "run: compiling ... 0 s" in capsys.readouterr().err


def test_a_wall_clock_that_jumps_changes_no_rate(monkeypatch, capsys):
    """A bar of tqdm's goes by the wall clock otherwise."""
    wall = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(wall)))
    monkeypatch.setattr(writers, "is_terminal", lambda: True)
    progress = Progress("run", 10, 0)
    progress.update(5)
    assert 0.0 <= progress._bar.format_dict["elapsed"] < 60.0
    progress.close()
    assert "-" not in capsys.readouterr().err.replace("\u2588", "")
