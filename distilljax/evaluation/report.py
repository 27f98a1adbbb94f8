"""The report of a run: numbers as JSON, a picture, and a page that shows both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath
from numpy.typing import ArrayLike

from distilljax.evaluation.figure import report_figure
from distilljax.evaluation.files import dump_json, strict
from distilljax.evaluation.page import report_page
from distilljax.evaluation.panels import Curves
from distilljax.runtime.storage import write_atomic

_SECTIONS = ("seconds", "hardware", "versions", "teacher", "students")
_COLUMNS = (
    "method",
    "nfe",
    "frechet",
    "mmd",
    "accuracy",
    "precision",
    "recall",
    "train_seconds",
    "network_evaluations",
)


class ReportFiles(NamedTuple):
    """Where `write_report` put things."""

    json: epath.Path
    png: epath.Path
    html: epath.Path


def write_report(
    folder: str | os.PathLike[str],
    report: Mapping[str, Any],
    grids: Mapping[str, ArrayLike],
    curves: Curves,
    *,
    columns: int = 2,
) -> ReportFiles:
    """Writes ``report.json``, ``report.png`` and ``report.html`` into a folder.

    Each file is whole or absent. Sample files are expected in ``samples/`` beside them.

    Args:
      folder: the run's folder; made if it is missing.
      report: what ``report.json`` shall hold. Required are ``seconds`` (``{"total": s,
        stage: s, ...}``), ``hardware``, ``versions``, ``teacher`` (``nfe``,
        ``frechet`` and whatever `summarise` returns) and ``students``, rows with
        ``method``, ``nfe``, ``frechet``, ``mmd``, ``accuracy``, ``precision``,
        ``recall``, ``train_seconds`` and ``network_evaluations``. ``title`` and
        ``protocol`` (a text, or ``{name: text}``) are shown; more may be there.
        Numbers that are not finite become null, and ``notes`` says which.
      grids: ``{name: images [R * columns, H, W, C]}``; see `report_figure`.
      curves: ``{method: {"step": [S], "loss": [S], ...}}``; see `report_figure`.
      columns: images of one label that stand side by side.

    Returns:
      The three paths.

    Raises:
      ValueError: something required is missing, or grids or curves do not fit.
      TypeError: the report holds what JSON cannot.
      ImportError: matplotlib is not installed.
    """
    missing = [name for name in _SECTIONS if name not in report]
    if missing:
        raise ValueError(
            f"report must have {', '.join(_SECTIONS)}; missing: {', '.join(missing)}. "
            "hardware() and versions() give two of them."
        )
    absent = [f"teacher.{k}" for k in ("nfe", "frechet") if k not in report["teacher"]]
    absent += [
        f"students[{i}].{name}"
        for i, row in enumerate(report["students"])
        for name in _COLUMNS
        if name not in row
    ]
    if absent:
        raise ValueError(
            "report must say nfe and frechet of the teacher, and of every student "
            f"{', '.join(_COLUMNS)}; missing: {', '.join(absent)}. Pass None where a "
            "number is not known."
        )
    content, notes = strict(report)
    if notes:
        content["notes"] = [*content.get("notes", []), *notes]

    folder = epath.Path(folder)
    png = report_figure(content, grids, curves, columns)
    samples = sorted(p.name for p in (folder / "samples").glob("*.npz"))
    html = report_page(content, png, samples)
    return ReportFiles(
        json=write_atomic(folder / "report.json", dump_json(content)),
        png=write_atomic(folder / "report.png", png),
        html=write_atomic(folder / "report.html", html),
    )
