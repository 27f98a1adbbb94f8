"""Every pair of the catalogue under `compose`, as a page: who composes, what is shared.

``python -m distilljax.experiment.catalogue`` writes it with the other generated pages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from distilljax.core.composition import compose
from distilljax.core.method import Method
from distilljax.methods import CATALOGUE, build

# Beside the marks of roles that stand twice.
SAMPLES, ALONE, REFUSED = "x", "·", "–"

HEAD = """# Compositions

    from distilljax import compose, methods

    method = compose(methods.dmd2(), methods.mean_flow(), weights={"mean_flow": 0.5})

The student's gradient is exactly the weighted sum of the methods' (`distilljax.compose`
says by which rules), and the result trains, samples and is saved as any method is. In a
config a composition goes by its names, with the options of each method under its own:

    options = {"weights": {"mean_flow": 0.5}, "dmd2": {"steps": (1, 2)}}
    config = card("dmd2+mean_flow", options, source=..., networks=...)

    distilljax train --config=... --config.method.weights.mean_flow=0.25

Teacher, target and critics are shared where both methods want the same of them.
Otherwise each has its own, the second method's under its name (`ladd_discriminator`,
`ladd/fool`): a fake score is that of the samples it was fitted to. `compose(...,
draws={"x": ...})` lets both methods judge the same samples, and `rename=` keeps apart
what would be shared.
"""


class Meeting(NamedTuple):
    """How two methods compose.

    Attributes:
      twice: roles that both have, each its own.
      samples: whether they draw something of one name differently.
      reason: why they do not compose; empty if they do.
    """

    twice: frozenset[str] = frozenset()
    samples: bool = False
    reason: str = ""


def meeting(first: Method, second: Method) -> Meeting:
    """Composes two methods and says what of them stands twice."""
    try:
        joined = compose(first, second)
    except ValueError as error:
        return Meeting(reason=str(error))
    prefixes = tuple(f"{method.name}_" for method in (first, second))
    twice = {
        role.removeprefix(prefix)
        for prefix in prefixes
        for role in joined.roles
        if role.startswith(prefix)
    }
    names = [name for phase in joined.phases for name in phase.draws]
    return Meeting(frozenset(twice), any("/" in name for name in names))


def table() -> dict[tuple[str, str], Meeting]:
    """All pairs of the catalogue under the methods' defaults."""
    made = {name: build(name) for name in CATALOGUE}
    pairs = itertools.combinations(CATALOGUE, 2)
    return {(a, b): meeting(made[a], made[b]) for a, b in pairs}


def _marks(found: Iterable[Meeting]) -> dict[str, str]:
    """A letter for every role that stands twice somewhere."""
    marks: dict[str, str] = {}
    for role in sorted({role for met in found for role in met.twice}):
        letters = (role[0].upper(), *role)
        free = (c for c in letters if c not in {SAMPLES, *marks.values()})
        marks[role] = next(free, role)
    return marks


def _cell(found: Meeting, marks: dict[str, str]) -> str:
    if found.reason:
        return REFUSED
    twice = "".join(mark for role, mark in marks.items() if role in found.twice)
    return twice + (SAMPLES if found.samples else "") or ALONE


def _refusals(found: dict[tuple[str, str], Meeting]) -> list[str]:
    """A line for every reason, with the pairs that it holds for."""
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for pair, met in found.items():
        if met.reason:
            what = met.reason.partition(": ")[2].partition(" differs")[0]
            why = met.reason.partition(";")[0].rpartition(": ")[2]
            by_reason.setdefault(f"The {what} differs: {why}", []).append(pair)
    lines = []
    for reason, pairs in by_reason.items():
        alone = set.intersection(*map(set, pairs))
        if len(alone) == 1 and len(pairs) == len(CATALOGUE) - 1:
            them = f"`{alone.pop()}` with every other method"
        else:
            them = ", ".join(f"`{a}` with `{b}`" for a, b in pairs)
        lines.append(f"- {reason} ({them}).")
    return lines


def page() -> str:
    """``docs/compositions.md``."""
    found, names = table(), list(CATALOGUE)
    marks = _marks(found.values())
    composed = [met for met in found.values() if not met.reason]
    plain = [met for met in composed if not (met.twice or met.samples)]
    lines = [
        "## All pairs",
        "",
        f"{len(composed)} of {len(found)} pairs compose under their defaults; in "
        f"{len(plain)} of them nothing stands twice. The tests hold this table, and "
        "that gradients are the weighted sums (`tests/methods/test_pairs.py`).",
        "",
        "| mark | what each of the two methods has for itself |",
        "|---|---|",
        *(f"| `{mark}` | {role} |" for role, mark in marks.items()),
        f"| `{SAMPLES}` | samples or points, drawn by laws of their own |",
        f"| `{ALONE}` | nothing: all that both name is shared |",
        f"| `{REFUSED}` | does not compose, see below |",
        "",
        "| | " + " | ".join(str(i + 1) for i in range(len(names))) + " |",
        "|---|" + "---|" * len(names),
    ]
    for i, name in enumerate(names):
        before = [_cell(found[other, name], marks) for other in names[:i]]
        cells = before + [""] * (len(names) - i)
        lines.append(f"| {i + 1} `{name}` | " + " | ".join(cells) + " |")
    lines += ["", "## What does not compose", "", *_refusals(found)]
    return HEAD + "\n" + "\n".join(lines) + "\n"
