"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from distilljax.evaluation.figure import colours
from distilljax.evaluation.summary import (
    best_students,
    in_words,
    number,
    ratio_to_teacher,
)

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1d232b; --muted: #5c6672;
  --line: #dfe3e8; --soft: #f5f7f9; --bar: #7a9cc6; --best: #0b6b4c; --mark: #dff3ea; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --ink: #e6eaee;
  --muted: #9aa5b1; --line: #2d343c; --soft: #1b2026; --bar: #4f76a6; --best: #7fd8b2;
  --mark: #143a2c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 76rem;
  background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .6rem; }
h2 { font-size: 1.12rem; margin: 2.2rem 0 .6rem; }
p { margin: 0 0 .8rem; max-width: 58rem; }
.note { color: var(--muted); font-size: .88rem; margin-top: .6rem; }
a { color: inherit; text-decoration-color: var(--muted); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
.picture { background: #fff; }
.picture img { display: block; width: 100%; min-width: 54rem; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: right; white-space: nowrap; }
thead th { background: var(--soft); color: var(--muted); font-weight: 600;
  font-size: .84rem; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 600; }
tbody.method { border-top: 1px solid var(--line); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--page); }
thead th:first-child { background: var(--soft); }
td.best { background: var(--mark); color: var(--best); font-weight: 700; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .5em; border: 1px solid var(--line); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr));
  gap: 0 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem;
  margin: 0; font-size: .92rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.bar { display: inline-block; height: .6em; border-radius: 2px; background: var(--bar);
  margin-right: .6em; }
code { font-size: .92em; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: 1rem .8rem 2rem; }
  h1 { font-size: 1.3rem; } }
"""


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _large(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


# column, title, format
_NUMBERS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("mmd", "MMD\u00b2", _fixed(5)),
    ("accuracy", "accuracy", _percent),
    ("precision", "precision", _percent),
    ("recall", "recall", _percent),
    ("copied", "copied", lambda value: f"{100 * value:.2f} %"),
    ("train_seconds", "training, s", _fixed(1)),
    ("network_evaluations", "evaluations in training", _large),
)


def _cells(report: Mapping[str, Any], row: Mapping[str, Any], best: bool) -> str:
    frechet, std = number(row.get("frechet")), number(row.get("frechet_std"))
    text = "n/a" if frechet is None else f"{frechet:.3f}"
    if frechet is not None and std is not None:
        text += f" \u00b1 {std:.3f}"
    ratio = ratio_to_teacher(report, row)
    mark = ' class="best"' if best else ""
    cells = [
        f"<td>{escape(str(row['nfe']))}</td>",
        f"<td{mark}>{text}</td>",
        f"<td{mark}>{'n/a' if ratio is None else f'{ratio:.2f}'}</td>",
    ]
    for name, _, show in _NUMBERS:
        value = number(row.get(name))
        cells.append(f"<td>{'n/a' if value is None else show(value)}</td>")
    return "".join(cells)


def _results(report: Mapping[str, Any]) -> str:
    titles = ["sampler", "NFE", "Frechet", "\u00f7 teacher"]
    titles += [title for _, title, _ in _NUMBERS]
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    shade, best = colours(report), best_students(report).values()
    bodies: list[str] = []
    for name in ("teacher", *dict.fromkeys(r["method"] for r in report["students"])):
        rows = [r for r in report["students"] if r["method"] == name]
        if name == "teacher":
            rows = [report["teacher"], *rows]
        dot = f'<span class="dot" style="background:{shade[name]}"></span>'
        lines = (
            f'<tr><th scope="row">{dot}{escape(name)}</th>'
            f"{_cells(report, row, any(row is b for b in best))}</tr>"
            for row in rows
        )
        bodies.append(f'<tbody class="method">{"".join(lines)}</tbody>')
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"{''.join(bodies)}</table></div>"
        '<p class="note">Frechet distance: lower is better; \u00b1 is the standard '
        "deviation of one noise seed; marked is the best student of each NFE. NFE: "
        "network evaluations a sample. Copied: share of samples as near to a training "
        "example as only the nearest real examples are to each other. Evaluations in "
        "training: forward 1, tangent 1, backward 2.</p>"
    )


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "n/a" if value is None else str(value)


def pairs(values: Any) -> str:
    """Names and values, one a line."""
    if not isinstance(values, Mapping):
        return f"<p>{escape(_text(values))}</p>"
    rows = (
        f"<dt>{escape(str(k).replace('_', ' '))}</dt><dd>{escape(_text(v))}</dd>"
        for k, v in values.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


def _times(seconds: Mapping[str, Any]) -> str:
    known = {k: v for k, v in seconds.items() if number(v) is not None}
    longest = max([v for k, v in known.items() if k != "total"], default=0) or 1
    rows = []
    for name, value in known.items():
        width = 9 * min(value / longest, 1) if name != "total" else 0
        bar = f'<span class="bar" style="width:{width:.2f}rem"></span>' if width else ""
        shown = f"{value:.1f} s"
        if name == "total":
            shown = f"<strong>{shown}</strong>"
        rows.append(f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{bar}{shown}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _files(samples: Sequence[str]) -> str:
    listed = ", ".join(
        f'<a href="samples/{escape(name)}"><code>{escape(name)}</code></a>'
        for name in samples
    )
    where = f"<p>In <code>samples/</code> beside this page: {listed}.</p>"
    return (
        (where if samples else "<p>No sample files lie beside this page.</p>")
        + '<p>The numbers are in <a href="report.json"><code>report.json</code></a>, '
        'the picture is <a href="report.png"><code>report.png</code></a>.</p>'
    )


def section(title: str, body: str) -> str:
    """A part of a page under a heading; both are HTML."""
    return f"<section><h2>{title}</h2>{body}</section>"


def picture(png: bytes, alt: str) -> str:
    """An embedded picture that scrolls where it is wider than the screen."""
    data = base64.b64encode(png).decode()
    return (
        '<div class="wide picture">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}"></div>'
    )


def document(title: str, parts: Iterable[str]) -> str:
    """A page in the house's style; the title is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n"
        f"<body>{chr(10).join(parts)}</body></html>\n"
    )


def report_page(report: Mapping[str, Any], png: bytes, samples: Iterable[str]) -> str:
    """The page: result in words, table, picture, protocol, machine, time, files.

    Args:
      report: as `write_report` takes it, already plain JSON types.
      png: the picture; it is embedded.
      samples: names of the files in ``samples/`` beside the page.

    Returns:
      HTML without external resources, for light and dark screens and for phones.
    """
    title = escape(report.get("title", "Few-step students beside their teacher"))
    picture = base64.b64encode(png).decode()
    words = escape(in_words(report))
    parts = [
        f"<h1>{title}</h1><p>{words}</p>",
        section("Results", _results(report)),
        section(
            "Samples, cost and training",
            '<div class="wide picture"><a href="report.png">'
            f'<img src="data:image/png;base64,{picture}" alt="Sample grids of data, '
            "teacher and students with the same noise and labels; Frechet distance by "
            f'evaluations; training curves. {words}"></a></div>',
        ),
        section("Protocol", pairs(report.get("protocol", "Not recorded."))),
        '<div class="pair">',
        section("Time", _times(report["seconds"])),
        section("Hardware", pairs(report["hardware"])),
        section("Versions", pairs(report["versions"])),
        "</div>",
        section("Files", _files(list(samples))),
    ]
    if report.get("notes"):
        notes = "".join(f"<li>{escape(str(note))}</li>" for note in report["notes"])
        parts.append(section("Notes", f"<ul>{notes}</ul>"))
    return document(title, parts)
