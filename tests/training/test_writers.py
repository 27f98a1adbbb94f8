import json
import math

import numpy as np

from distilljax.training import read_metrics
from distilljax.training.writers import JsonLines, Progress


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


def test_numbers_that_json_lacks(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path)
    writer.write(1, {"a": math.nan, "b": np.float32(2.0), "c": np.inf, "d": 3})
    writer.close()
    record = json.loads(path.read_text())
    assert record == {"step": 1, "a": None, "b": 2.0, "c": None, "d": 3}
    assert math.isnan(read_metrics(path)["a"][1][0])


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
