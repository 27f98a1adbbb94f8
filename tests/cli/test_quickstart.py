"""The quick start in miniature: killed in the middle, finished, reused, refused."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from distilljax import quickstart
from distilljax.data.sources import digits
from distilljax.training.writers import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
STUDENTS = [(m, k) for m in ("scm", "mean_flow", "dmd2", "rcm") for k in (1, 2, 4)]
NAMES = ["teacher_nfe50", *(f"{m}_nfe{k}" for m, k in STUDENTS)]


def start(folder):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "distilljax",
            "quickstart",
            "--smoke",
            f"--out={folder}",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """``(folder, output of the call that finished it)``; an earlier one was killed."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    first = start(folder)
    deadline = time.monotonic() + 300
    # Killed while the second student trains.
    while not (folder / "mean_flow" / "config.json").is_file():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (folder / "report.json").exists()
    second = start(folder)
    output, _ = second.communicate(timeout=500)
    assert second.returncode == 0, output
    return folder, output


def test_a_killed_call_is_finished_by_the_next(smoke):
    _, output = smoke
    assert "teacher: done before" in output
    assert "scm: done before" in output
    assert "mean_flow: done before" not in output
    assert "report: " in output


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_shape_range_and_labels_of_the_data(smoke, name):
    with np.load(smoke[0] / "samples" / f"{name}.npz") as found:
        assert sorted(found) == ["label", "x"]
        x, label = found["x"], found["label"]
    assert x.shape == (1797, 8, 8, 1)
    assert x.dtype == np.float32
    assert label.dtype == np.int32
    assert -1.0 <= x.min() < x.max() <= 1.0
    # Not rounded to the 17 levels of the data.
    assert len(np.unique(x)) > 1000
    real = digits().columns["cond"]
    np.testing.assert_array_equal(np.bincount(label), np.bincount(real))


def test_samplers_share_labels_and_differ(smoke):
    rows = {n: np.load(smoke[0] / "samples" / f"{n}.npz") for n in NAMES}
    for name in NAMES:
        np.testing.assert_array_equal(rows[name]["label"], rows[NAMES[0]]["label"])
    images = {rows[name]["x"].tobytes() for name in NAMES}
    assert len(images) == len(NAMES)


def test_the_report_holds_what_the_reader_needs(smoke):
    report = json.loads((smoke[0] / "report.json").read_text())
    assert report["hardware"]
    assert report["versions"]
    stages = ["teacher", "scm", "mean_flow", "dmd2", "rcm", "sampling", "evaluation"]
    assert set(report["seconds"]) == {"total", "report", *stages}
    parts = sum(v for k, v in report["seconds"].items() if k != "total")
    assert report["seconds"]["total"] == pytest.approx(parts, abs=0.1)
    assert report["teacher"]["nfe"] == 50
    assert [(r["method"], r["nfe"]) for r in report["students"]] == STUDENTS
    for row in (report["teacher"], *report["students"]):
        for key in ("frechet", "mmd", "accuracy", "precision", "recall"):
            assert np.isfinite(row[key]), key
        assert row["frechet"] > 0
        assert all(0 <= row[k] <= 1 for k in ("accuracy", "precision", "recall"))
        assert row["train_seconds"] > 0
        assert row["copies"] is False
    # One forward and one backward a sample: 60 cycles of 208 samples.
    assert report["teacher"]["network_evaluations"] == pytest.approx(
        3 * 60 * 208, rel=0.1
    )
    assert report["protocol"]["smoke"] is True


def test_frechet_of_the_report_is_that_of_the_files(smoke):
    from distilljax.evaluation import frechet_distance

    report = json.loads((smoke[0] / "report.json").read_text())
    real = digits().columns["x0"].reshape(1797, 64)
    x = np.load(smoke[0] / "samples" / "dmd2_nfe2.npz")["x"].reshape(1797, 64)
    (row,) = [r for r in report["students"] if (r["method"], r["nfe"]) == ("dmd2", 2)]
    assert row["frechet"] == pytest.approx(frechet_distance(x, real), rel=1e-9)


def test_the_page_and_its_picture_are_there(smoke):
    with Image.open(smoke[0] / "report.png") as picture:
        assert min(picture.size) > 500
    page = (smoke[0] / "report.html").read_text()
    for word in ("scm", "mean_flow", "dmd2", "rcm", "teacher"):
        assert word in page


@pytest.mark.parametrize("name", ["teacher", "scm", "mean_flow", "dmd2", "rcm"])
def test_a_training_is_probed_twice_the_last_time_at_its_end(smoke, name):
    at, _ = read_metrics(smoke[0] / name / "metrics.jsonl")["evaluate/frechet"]
    cycles = 60 if name == "teacher" else 12
    assert list(at) == [cycles // 2, cycles]


def test_probes_are_as_many_as_asked_where_they_do_not_divide_the_cycles(
    tmp_path, monkeypatch
):
    seen = {}

    def fit_card(found, **_):
        seen[found.method.name] = found.train
        raise Started

    monkeypatch.setattr(quickstart.api, "fit_card", fit_card)
    with pytest.raises(Started):
        quickstart.run(tmp_path)
    (train,) = seen.values()
    assert train.cycles % quickstart.PROBES
    assert -(-train.cycles // train.evaluate_every) == quickstart.PROBES


def test_a_second_call_reuses_everything(smoke, capsys):
    folder, _ = smoke
    files = [p for p in folder.rglob("*") if p.is_file() and "report" not in p.name]
    before = {p: p.stat().st_mtime_ns for p in files}
    before.pop(folder / "quickstart.json")
    report = json.loads((folder / "report.json").read_text())
    assert quickstart.run(folder, smoke=True) == folder / "report.html"
    assert capsys.readouterr().out.count("done before") == 7
    assert {p: p.stat().st_mtime_ns for p in before} == before
    again = json.loads((folder / "report.json").read_text())
    assert again["students"] == report["students"]
    assert quickstart.rebuild(folder) == folder / "report.html"


def test_a_changed_setting_is_refused(smoke, monkeypatch):
    folder, _ = smoke
    with pytest.raises(ValueError, match=r"smoke: True -> False.*Pass --fresh"):
        quickstart.run(folder)
    monkeypatch.setitem(quickstart._SMOKE_CYCLES, "teacher", 61)
    with pytest.raises(ValueError, match=r"cards.teacher.cycles: 60 -> 61"):
        quickstart.run(folder, smoke=True)
    assert (folder / "report.json").is_file()


class Started(Exception):
    """Raised in place of the first stage."""


@pytest.fixture
def stopped(monkeypatch):
    def stop(self):
        raise Started

    monkeypatch.setattr(quickstart._Job, "teacher", stop)


def test_fresh_starts_again(tmp_path, stopped):
    (tmp_path / "quickstart.json").write_text("{}")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "teacher.json").write_text("{}")
    with pytest.raises(ValueError, match="other settings"):
        quickstart.run(tmp_path, smoke=True)
    with pytest.raises(Started):
        quickstart.run(tmp_path, smoke=True, fresh=True)
    assert [p.name for p in tmp_path.iterdir()] == ["quickstart.json"]


def test_folders_of_others_are_left_alone(tmp_path, stopped):
    (tmp_path / "thesis.txt").write_text("words")
    for fresh in (False, True):
        with pytest.raises(ValueError, match="holds no quick start.*another folder"):
            quickstart.run(tmp_path, fresh=fresh, smoke=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unfinished_quick_start_has_no_report(tmp_path, stopped):
    with pytest.raises(ValueError, match="holds no quick start; run one"):
        quickstart.rebuild(tmp_path)
    with pytest.raises(Started):
        quickstart.run(tmp_path, smoke=True)
    with pytest.raises(ValueError, match="not finished; run it again to continue"):
        quickstart.rebuild(tmp_path)
