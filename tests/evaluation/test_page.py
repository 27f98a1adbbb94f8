"""The page is well formed, complete, and needs nothing from outside."""

import base64
import re
from html.parser import HTMLParser

import pytest

from distilljax.evaluation.page import report_page

PNG = b"\x89PNG picture"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Text of all cells, all addresses, and whether tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.rows, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [v for k, v in values.items() if k in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([values.get("class"), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1][1] += data


@pytest.fixture
def page(report):
    return Page(report_page(report, PNG, ["scm_nfe1.npz", "teacher_nfe50.npz"]))


def test_nothing_is_loaded_from_outside(report, page):
    text = report_page(report, PNG, [])
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    inside = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert inside in page.links
    local = [v for v in page.links if v != inside]
    assert set(local) == {
        "samples/scm_nfe1.npz",
        "samples/teacher_nfe50.npz",
        "report.json",
        "report.png",
    }


def test_light_dark_and_phone(report):
    text = report_page(report, PNG, [])
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport" content="width=device-width' in text


def test_the_table_has_every_row_with_its_ratio_and_the_best_marked(page):
    head, *rows = [[cell for _, cell in row] for row in page.rows]
    assert head[:4] == ["sampler", "NFE", "Frechet", "\u00f7 teacher"]
    assert {"accuracy", "precision", "recall"} < set(head)
    assert [row[:4] for row in rows] == [
        ["teacher", "50", "0.200 \u00b1 0.010", "1.00"],
        ["scm", "1", "0.300 \u00b1 0.010", "1.50"],
        ["scm", "4", "0.240 \u00b1 0.010", "1.20"],
        ["dmd2", "1", "0.340 \u00b1 0.010", "1.70"],
        ["dmd2", "4", "0.220 \u00b1 0.010", "1.10"],
    ]
    assert all(len(row) == len(head) for row in rows)
    marked = [row[2][0] for row in page.rows[1:]]
    assert marked == [None, "best", None, None, "best"]
    assert rows[1][head.index("evaluations in training")] == "1.38 M"


def test_words_protocol_machine_time_and_names_are_there(page):
    for wanted in (
        "At 1 evaluation scm is best",
        "Digits <& test>",
        "clipping",
        "a & b",
        "cpu: 1",
        "3.11.7",
        "100.0 s",
        "60.0 s",
    ):
        assert wanted in page.text


def test_unknown_numbers_read_so(report):
    report["students"][0]["frechet"] = None
    report["students"][0]["mmd"] = None
    report["protocol"] = "as in the paper"
    report["notes"] = ["report.x was nan, written as null"]
    page = Page(report_page(report, PNG, []))
    cells = [cell for _, cell in page.rows[2]]
    assert cells[2:5] == ["n/a", "n/a", "n/a"]
    assert "as in the paper" in page.text
    assert "report.x was nan" in page.text
    assert "No sample files" in page.text
