"""The results of a bench as text, table and page."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from html import escape
from typing import Any

from etils import epath

from distilljax.bench import pictures
from distilljax.bench.suites import STEPS
from distilljax.evaluation.page import document, pairs, picture, section
from distilljax.runtime import storage
from distilljax.runtime.terminal import is_terminal
from distilljax.training.writers import Progress

# Number, title, digits, in the table of one number of evaluations.
NUMBERS = (
    ("energy_distance", "energy distance", 5),
    ("frechet", "Frechet", 3),
    ("sliced_wasserstein", "sliced Wasserstein", 4),
    ("nll_excess", "NLL above entropy", 3),
    ("weight_error", "weight error", 3),
    ("modes", "modes", 2),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("coverage", "coverage", 3),
    ("accuracy", "accuracy", 3),
    ("flow_error", "flow error", 3),
)
LEGEND = {
    "energy_distance": "`2 E|x - y| - E|x - x'| - E|y - y'|` to exact samples",
    "frechet": "Frechet distance on pixels",
    "sliced_wasserstein": "over 64 directions, order 2",
    "nll_excess": "mean negative log density of the samples less the entropy, nats; "
    "negative where tails are missing",
    "weight_error": "half the sum over modes of the distance from the true weight",
    "modes": "share of modes with at least half of their weight",
    "flow_error": "root mean square distance to where the exact flow takes the noise",
}
_STEPS_OF_BAR = 100
# What a method should reach: at so many evaluations, so many times the exact teacher.
GOAL_NFE, GOAL = 4, 2.0


class Bar:
    """A bar of one training on a terminal, a line now and then elsewhere."""

    def __init__(self, label: str, show: bool, pause: float = 30.0):
        self._label, self._show, self._pause = label, show, pause

    def __enter__(self) -> Bar:
        self._tty = self._show and is_terminal()
        self._bar = Progress(self._label, _STEPS_OF_BAR, 0, self._tty)
        self._said = time.monotonic()
        return self

    def __call__(self, share: float) -> None:
        """Shows the share that is done."""
        self._bar.update(round(share * _STEPS_OF_BAR))
        now = time.monotonic()
        if self._show and not self._tty and now - self._said > self._pause:
            self._said = now
            print(f"  {self._label}: {100 * share:.0f} %", file=sys.stderr, flush=True)

    def __exit__(self, *_: Any) -> None:
        self._bar.close()


def mean(found: Mapping[str, Any], name: str) -> float | None:
    """Mean over seeds of a number, if it is there."""
    value = found.get(name)
    return value["mean"] if isinstance(value, Mapping) else None


def ahead(found: Mapping[str, Any], base: Mapping[str, Any], headline: str) -> bool:
    """Whether a number is clearly below another: by two standard deviations."""
    own, other = found[headline], base[headline]
    spread = math.hypot(own["std"] or 0.0, other["std"] or 0.0)
    return own["mean"] + 2.0 * spread < other["mean"]


def behind(results: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Evaluations at which a method is not clearly ahead of its start."""
    base = results["pretrained"]
    return [
        nfe
        for nfe, found in row.get("by_nfe", {}).items()
        if not ahead(found, base[nfe], results["headline"])
    ]


def short_of_goal(results: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """Times the teacher at `GOAL_NFE` where that is more than `GOAL`, else None.

    The teacher starts from the same noise; where there is no such line, the floor is
    the teacher.
    """
    found = row.get("by_nfe", {}).get(str(GOAL_NFE))
    if found is None:
        return None
    headline = results["headline"]
    teacher = results.get("teacher", results["floor"])[headline]["mean"]
    factor = found[headline]["mean"] / teacher
    return factor if factor > GOAL else None


def in_words(results: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A row as one line."""
    if "error" in row:
        return f"failed: {row['error']}"
    headline = results["headline"]
    floor = results["floor"][headline]["mean"]
    parts = [
        f"{nfe} NFE {found[headline]['mean'] / floor:.1f} x floor"
        for nfe, found in row["by_nfe"].items()
    ]
    late = behind(results, row)
    more = f"; NOT ahead of its start at {', '.join(late)}" if late else ""
    return f"{row['seconds']:.0f} s; {', '.join(parts)}{more}"


def ranked(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows by the geometric mean of their headline over evaluations, errors last."""

    def key(row: Mapping[str, Any]) -> tuple[bool, float]:
        if "error" in row:
            return True, 0.0
        values = [f[results["headline"]]["mean"] for f in row["by_nfe"].values()]
        logs = [math.log(max(v, 1e-12)) for v in values]
        return False, sum(logs) / len(logs)

    return sorted(results["rows"], key=key)


def _cost(row: Mapping[str, Any]) -> dict[str, float]:
    """Cost of a row: of one training for one number of evaluations."""
    runs = list(row["runs"].values())
    return {
        "evaluations": max(r["evaluations"] for r in runs),
        "seconds": max(r["seconds"] for r in runs),
        "compile": max(r["compile_seconds"] for r in runs),
        "bytes": max(r["peak_bytes"] for r in runs),
        "networks": max(r["networks"] for r in runs),
        "trainings": len(runs),
    }


def _value(found: Mapping[str, Any], name: str, digits: int) -> str:
    entry = found.get(name)
    if not isinstance(entry, Mapping):
        return ""
    text = f"{entry['mean']:.{digits}f}"
    return text if entry["std"] is None else f"{text} ± {entry['std']:.{digits}f}"


def _lines_to_meet(
    results: Mapping[str, Any],
) -> list[tuple[str, Mapping[str, Any], str]]:
    """Title, numbers and remark of what methods are compared with at every NFE."""
    lines = [(results["floor_name"], results["floor"], "the floor")]
    if "teacher" in results:
        remark = "from the noise that the students start from"
        lines.append(("exact teacher", results["teacher"], remark))
    return lines


def summary(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table over all evaluations."""
    headline = results["headline"]
    floor = results["floor"][headline]["mean"]
    titles = ["method", "family", *(f"{k} NFE" for k in STEPS), "rank"]
    titles.append("x floor at best")
    titles += ["evaluations", "seconds", "MiB", "networks", "remark"]
    digits = dict((name, d) for name, _, d in NUMBERS)[headline]
    lines = []
    for name, found, remark in _lines_to_meet(results):
        cells = [_value(found, headline, digits)] * len(STEPS)
        factor = f"{found[headline]['mean'] / floor:.1f}"
        lines.append([name, "", *cells, "", factor, *[""] * 4, remark])
    lines.append(
        ["pretrained", ""]
        + [_value(results["pretrained"][str(k)], headline, digits) for k in STEPS]
        + [""] * 6
        + ["the start of all students, sampled alike"]
    )
    rank = {row["name"]: i for i, row in enumerate(ranked(results), start=1)}
    for row in results["rows"]:
        if "error" in row:
            lines.append([row["name"], row["family"], *[""] * 9, row["error"]])
            continue
        cells = []
        for k in STEPS:
            found = row["by_nfe"].get(str(k))
            cells.append("" if found is None else _value(found, headline, digits))
        best = min(f[headline]["mean"] for f in row["by_nfe"].values())
        cost, remarks = _cost(row), []
        if row["note"]:
            remarks.append(row["note"])
        if row["each"]:
            remarks.append("a training for each NFE")
        late = behind(results, row)
        if late:
            remarks.append(f"not ahead of its start at {', '.join(late)} NFE")
        short = short_of_goal(results, row)
        if short is not None:
            remarks.append(f"{short:.1f} times the teacher at {GOAL_NFE} NFE")
        lines.append(
            [
                row["name"],
                row["family"],
                *cells,
                str(rank[row["name"]]),
                f"{best / floor:.1f}",
                f"{cost['evaluations'] / 1e6:.2f} M",
                f"{cost['seconds']:.0f}",
                f"{cost['bytes'] / 2**20:.0f}",
                f"{cost['networks']:.0f}",
                "; ".join(remarks),
            ]
        )
    return titles, lines


def details(results: Mapping[str, Any], nfe: int) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of all numbers at one number of evaluations."""
    first = results["floor"]
    key = str(nfe)
    rows = [r for r in results["rows"] if key in r.get("by_nfe", {})]
    used = [
        n
        for n in NUMBERS
        if n[0] in first or any(n[0] in r["by_nfe"][key] for r in rows)
    ]
    lines = []
    for name, found in [
        *((title, values) for title, values, _ in _lines_to_meet(results)),
        ("pretrained", results["pretrained"][key]),
        *((r["name"], r["by_nfe"][key]) for r in rows),
    ]:
        lines.append([name, *(_value(found, column, d) for column, _, d in used)])
    return ["method", *(title for _, title, _ in used)], lines


def _intro(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    return (
        f"Suite `{results['suite']}`, {results['date']}: every method from the same "
        f"network and teacher with {settings['budget']:,} network evaluations (forward "
        f"1, tangent 1, backward 2; teacher and auxiliary networks included), batch "
        f"{settings['batch_size']}, {settings['seeds']} seeds, {settings['samples']} "
        "samples a seed; ± is the standard deviation over seeds. Seconds are those of "
        "all seeds together without compilation, MiB what the training program holds, "
        "networks the parameter sets of the student's size. Methods stand in the order "
        "of the run; their rank is that of the geometric mean over numbers of "
        "evaluations."
    )


def markdown(results: Mapping[str, Any]) -> str:
    """The tables."""
    parts = [f"# distilljax bench: {results['suite']}", _intro(results)]
    parts.append(_markdown_table(*summary(results)))
    for nfe in STEPS:
        parts += [f"## {nfe} NFE", _markdown_table(*details(results, nfe))]
    present = [
        f"- {name}: {LEGEND[name]}" for name in LEGEND if name in _present(results)
    ]
    parts.append("\n".join(present))
    missing = [f"- `{name}`: {why}" for name, why in results["missing"].items()]
    if missing:
        parts += ["Not on this bench:", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def _present(results: Mapping[str, Any]) -> set[str]:
    found = set(results["floor"])
    for row in results["rows"]:
        for values in row.get("by_nfe", {}).values():
            found |= set(values)
    return found


def _markdown_table(titles: list[str], lines: list[list[str]]) -> str:
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _html_table(titles: list[str], lines: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(t)}</th>' for t in titles)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in lines
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def write_page(folder: str | os.PathLike, results: Mapping[str, Any]) -> epath.Path:
    """Writes ``bench.html`` and its pictures; returns the path of the page."""
    folder = epath.Path(folder)
    parts = [
        f"<h1>distilljax bench: {escape(results['suite'])}</h1>",
        f"<p>{escape(_intro(results)).replace('`', '')}</p>",
        section("Result", _html_table(*summary(results))),
    ]
    for name, (title, png) in pictures.draw(folder, results).items():
        storage.write_atomic(folder / f"{name}.png", png)
        parts.append(section(escape(title), picture(png, title)))
    for nfe in STEPS:
        parts.append(section(f"{nfe} NFE", _html_table(*details(results, nfe))))
    meanings = {k: LEGEND[k].replace("`", "") for k in LEGEND if k in _present(results)}
    parts.append(section("What the numbers mean", pairs(meanings)))
    if results["missing"]:
        parts.append(section("Not on this bench", pairs(results["missing"])))
    parts.append(section("Hardware", pairs(results["hardware"])))
    parts.append(section("Versions", pairs(results["versions"])))
    path = folder / "bench.html"
    storage.write_atomic(path, document("distilljax bench", parts).encode())
    return path
