"""Three files with the agreed schema, and nothing heavy imported before its use."""

import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from distilljax.evaluation import write_report


def test_the_files_hold_the_report(tmp_path, report, grids, curves):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "scm_nfe1.npz").write_bytes(b"")
    files = write_report(tmp_path, report, grids, curves)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "report.html",
        "report.json",
        "report.png",
        "samples",
    ]
    assert json.loads(files.json.read_text()) == report
    embedded = re.search(r"base64,([A-Za-z0-9+/=]+)", files.html.read_text())
    assert embedded
    assert base64.b64decode(embedded[1]) == files.png.read_bytes()
    assert "samples/scm_nfe1.npz" in files.html.read_text()


def test_numbers_that_are_not_finite_become_null_with_a_note(
    tmp_path, report, grids, curves
):
    report["students"][2]["frechet"] = np.float32("nan")
    report["notes"] = ["first"]
    text = write_report(tmp_path, report, grids, curves).json.read_text()

    def refuse(name):
        raise AssertionError(name)

    found = json.loads(text, parse_constant=refuse)
    assert found["students"][2]["frechet"] is None
    assert found["notes"] == [
        "first",
        "report.students[2].frechet was nan, written as null",
    ]


def test_missing_parts_are_named_and_nothing_is_written(
    tmp_path, report, grids, curves
):
    bare = {k: v for k, v in report.items() if k not in ("hardware", "seconds")}
    with pytest.raises(ValueError, match=r"missing: seconds, hardware"):
        write_report(tmp_path, bare, grids, curves)
    del report["students"][1]["recall"], report["teacher"]["frechet"]
    with pytest.raises(ValueError, match=r"teacher.frechet, students\[1\].recall"):
        write_report(tmp_path, report, grids, curves)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_grid_leaves_the_old_report(tmp_path, report, grids, curves):
    files = write_report(tmp_path, report, grids, curves)
    before = files.json.read_text()
    report["title"] = "changed"
    with pytest.raises(ValueError, match="grids"):
        write_report(tmp_path, report, grids, curves, columns=7)
    assert files.json.read_text() == before


def test_importing_the_package_loads_jax_and_numpy_alone():
    heavy = "('sklearn', 'scipy', 'matplotlib', 'PIL', 'flax', 'safetensors', 'tqdm')"
    code = (
        "import sys, distilljax.evaluation\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
