"""Tables and rankings."""

import pytest

from distilljax.bench import report


def number(mean, std=0.0):
    return {"mean": mean, "std": std, "seeds": [mean]}


def found(*values):
    return {
        str(k): {"energy_distance": number(v)}
        for k, v in zip((1, 2, 4), values, strict=False)
    }


def row(name, *values, **more):
    spent = {
        "evaluations": 1e6,
        "seconds": 2.0,
        "compile_seconds": 1.0,
        "peak_bytes": 2**20,
        "networks": 2,
        "history": [],
    }
    return {
        "name": name,
        "family": "consistency",
        "note": "",
        "each": False,
        "runs": {"1": spent},
        "by_nfe": found(*values),
        "seconds": 3.0,
        **more,
    }


RESULTS = {
    "suite": "mixture",
    "headline": "energy_distance",
    "floor_name": "exact samples",
    "floor": {"energy_distance": number(0.1)},
    "pretrained": found(4.0, 2.0, 1.0),
    "rows": [row("late", 2.0, 2.5, 3.0), row("good", 1.0, 0.5, 0.2)],
    "settings": {"budget": 10, "batch_size": 2, "seeds": 1, "samples": 3},
    "missing": {},
    "date": "today",
}
FAILED = {"name": "none", "family": "flow map", "error": "ValueError: no", "seconds": 1}


def test_clearly_ahead_is_by_two_deviations():
    base = {"e": number(1.0, 0.03)}
    assert report.ahead({"e": number(0.89, 0.04)}, base, "e")
    assert not report.ahead({"e": number(0.91, 0.04)}, base, "e")
    assert report.ahead({"e": {**number(0.9), "std": None}}, base, "e")


def test_rows_are_ranked_and_say_where_they_are_behind():
    results = {**RESULTS, "rows": [FAILED, *RESULTS["rows"]]}
    assert [r["name"] for r in report.ranked(results)] == ["good", "late", "none"]
    assert report.behind(results, RESULTS["rows"][0]) == ["2", "4"]
    words = report.in_words(results, RESULTS["rows"][0])
    assert "1 NFE 20.0 x floor" in words
    assert "NOT ahead of its start at 2, 4" in words
    assert report.in_words(results, FAILED) == "failed: ValueError: no"


def test_the_goal_is_twice_the_teacher_from_the_same_noise():
    late, good = RESULTS["rows"]
    assert report.short_of_goal(RESULTS, good) is None
    assert report.short_of_goal(RESULTS, late) == pytest.approx(30.0)
    results = {**RESULTS, "teacher": {"energy_distance": number(1.0)}}
    assert report.short_of_goal(results, late) == pytest.approx(3.0)
    assert report.short_of_goal(results, row("one", 0.3)) is None
    text = report.markdown(results)
    assert "3.0 times the teacher at 4 NFE" in text
    assert text.count("| exact teacher |") == 4


def test_a_table_of_markdown_is_one():
    text = report.markdown({**RESULTS, "rows": [FAILED, *RESULTS["rows"]]})
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    for part in ("not ahead of its start at 2, 4 NFE", "ValueError: no", "exact"):
        assert part in text
    first = [line for line in lines if line.startswith("| method | family")]
    (title,) = first
    at = lines.index(title)
    assert all(line.count("|") == title.count("|") for line in lines[at : at + 7])


def test_progress_is_a_line_now_and_then(capsys):
    for show, pause, said in ((True, 0.0, "  label: 50 %\n"), (True, 9.0, "")):
        with report.Bar("label", show, pause) as bar:
            bar(0.5)
        assert capsys.readouterr().err == said
    with report.Bar("label", False, 0.0) as bar:
        bar(0.5)
    assert capsys.readouterr().err == ""
