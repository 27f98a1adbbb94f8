"""docs/parity.md lists the files that there are."""

import re

import pytest

from distilljax import methods
from tests.parity import measured, report, vectors

TEXT = report.PAGE.read_text()


def test_the_page_lists_every_file():
    listed = {report.named(row) for row in report.listed(TEXT)}
    assert listed == set(vectors.NAMES)
    assert report.merged(TEXT, []) == TEXT


def test_the_page_has_every_method_and_every_output():
    heads = {"method", "file"}
    told = set(re.findall(r"^\| ([a-z_0-9]+) \|", TEXT, re.MULTILINE)) - heads
    assert {vectors.Vector(name).method for name in vectors.NAMES} <= told
    assert told <= set(methods.CATALOGUE)
    for row in report.listed(TEXT):
        output = row.split("|")[2].strip()
        assert not output or output in vectors.Vector(report.named(row)).outputs


def test_rows_say_what_was_measured_and_what_cannot_be(monkeypatch):
    found = {"segments": measured.Measured(None, 0.0)}
    monkeypatch.setattr(measured, "measured", lambda vector: found)
    rows = list(report.rows("cm_ct-curriculum"))
    assert rows[0] == "| `cm_ct-curriculum` | segments | 1 |  | 0.0e+00 | 0 |"
    assert rows[1:] == [
        f"| `cm_ct-curriculum` | {name} | | | no case runs it | |"
        for name in ("ema", "grid")
    ]

    def fails(error):
        def run(vector):
            raise error

        return run

    for error, text in (
        (KeyError("no function 'cm_ct_tables'"), "no case runs it: no function"),
        (ValueError("a | b\nc"), "ValueError: a / b c"),
    ):
        monkeypatch.setattr(measured, "measured", fails(error))
        (row,) = report.rows("cm_ct-curriculum")
        assert text in row


def test_new_rows_stand_in_place_of_old_ones():
    page = "\n".join(("# Page", *report.HEAD, "| `a` | 1 |", "| `c` | 2 |", ""))
    wanted = "\n".join(
        ("# Page", *report.HEAD, "| `a` | 1 |", "| `b` | 4 |", "| `c` | 3 |", "")
    )
    assert report.merged(page, ["| `c` | 3 |", "| `b` | 4 |"]) == wanted


def test_an_unknown_file_is_refused(capsys):
    assert report.main(["no-such"]) == 1
    assert "no golden vectors ['no-such']" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        report.main(["--wrte"])
