"""The folder of a bench: resumed, refused, with a row for what fails."""

import dataclasses
import json

import numpy as np
import pytest

from distilljax.bench import run, runner
from distilljax.bench.suites import Entry
from distilljax.bench.training import sampling_noise
from tests.bench.small import suite


def broken(cycles, nfe):
    raise RuntimeError("this method cannot be built")


@pytest.fixture(scope="module")
def made():
    entries = suite().entries
    return suite(
        entries={
            "ect": entries["ect"],
            "lcm": Entry(broken, entries["lcm"].settings),
            "diff_instruct": entries["diff_instruct"],
        }
    )


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    run(made, out, methods="ect", seeds=2)
    return out


@pytest.fixture(scope="module")
def results(made, folder):
    return run(made, folder, seeds=2)


def test_files_rows_and_a_failure(results, folder, made):
    rows = {row["name"]: row for row in results["rows"]}
    assert set(rows) == {"ect", "lcm", "diff_instruct"}
    assert rows["lcm"]["error"] == "RuntimeError: this method cannot be built"
    assert set(rows["ect"]["by_nfe"]) == {"1", "2", "4"}
    assert set(rows["diff_instruct"]["by_nfe"]) == {"1"}
    one = rows["ect"]["by_nfe"]["1"]
    for number in ("energy_distance", "nll_excess", "weight_error", "flow_error"):
        assert len(one[number]["seeds"]) == 2
        assert one[number]["mean"] == pytest.approx(np.mean(one[number]["seeds"]))
    # Fresh noise between steps leaves the flow of the first noise.
    assert "flow_error" not in rows["ect"]["by_nfe"]["2"]
    assert "flow_error" in results["pretrained"]["4"]
    # The exact teacher is what students that follow the flow are compared with.
    assert len(results["teacher"]["energy_distance"]["seeds"]) == 2
    with np.load(folder / "samples" / "teacher_seed1.npz") as found:
        flown = found["x"]
    noise = sampling_noise(1, 256, (2,))
    np.testing.assert_array_equal(flown, made.teacher(noise))
    assert made.judge.paired(flown, np.asarray(noise))["flow_error"] == 0
    run_of = rows["ect"]["runs"]["1"]
    assert run_of["evaluations"] <= 1.01 * made.budget
    assert run_of["peak_bytes"] > 0
    assert json.loads((folder / "bench.json").read_text()) == results
    for name in ("ect_nfe4_seed1", "diff_instruct_nfe1_seed0", "floor_seed1"):
        with np.load(folder / "samples" / f"{name}.npz") as found:
            assert found["x"].shape == (256, 2)
            assert found["x"].dtype == np.float32
    for name in ("pareto.png", "training.png", "samples.png"):
        assert (folder / name).stat().st_size > 10_000
    for text in ((folder / "bench.md"), (folder / "bench.html")):
        for part in (
            "ect",
            "this method cannot be built",
            "it restores images",
            "exact samples",
        ):
            assert part in text.read_text()


def test_what_is_written_is_what_was_judged(results, folder, made):
    (row,) = (row for row in results["rows"] if row["name"] == "ect")
    found = row["by_nfe"]["4"]["energy_distance"]["seeds"]
    with np.load(folder / "samples" / "ect_nfe4_seed1.npz") as file:
        again = made.judge.statistics(file["x"])
    assert again["energy_distance"] == pytest.approx(found[1])


def test_a_second_call_repeats_nothing(results, folder, made, monkeypatch, capsys):
    monkeypatch.setattr(runner, "train", None)
    assert run(made, folder, seeds=2)["rows"] == results["rows"]
    said = capsys.readouterr().out
    assert "ect: done before" in said
    assert "lcm: done before, failed: RuntimeError" in said


def test_what_failed_is_run_again_on_request(folder, made, monkeypatch, capsys):
    monkeypatch.setattr(runner, "train", None)
    run(made, folder, methods="lcm", seeds=2, redo=True)
    said = capsys.readouterr().out
    assert "lcm: ..." in said
    assert "lcm: done before" not in said


def test_another_bench_is_refused(folder, made, tmp_path):
    with pytest.raises(ValueError, match=r"other settings.*seeds.*--fresh"):
        run(made, folder, seeds=3)
    with pytest.raises(ValueError, match=r"budget: 6000 -> 7000"):
        run(made, folder, seeds=2, budget=7000)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no bench"):
        run(made, tmp_path)
    with pytest.raises(ValueError, match="holds no bench, so --fresh leaves it"):
        run(made, tmp_path, fresh=True)
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        run(made, tmp_path / "new", seeds=0)
    with pytest.raises(ValueError, match="budget must be at least 1"):
        run(made, tmp_path / "new", budget=0)
    assert not (tmp_path / "new").exists()


def test_samples_that_are_not_finite_are_a_row(made, tmp_path):
    def settings(cycles):
        return {"student": {"lr": 1e30, "clip": None}}

    entries = {"ect": made.entries["ect"]._replace(settings=settings)}
    wild = dataclasses.replace(made, entries=entries)
    (row,) = run(wild, tmp_path / "out", seeds=1)["rows"]
    words = "FloatingPointError: samples at 1 NFE are not finite under seeds [0]"
    assert row["error"] == words
