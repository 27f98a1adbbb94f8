"""Pages of methods: one a method, and an index by family.

Everything comes from where it is kept: the equation and the options from the docstring,
the updates of one iteration from the method's records, numbers from the tables of the
guides, differences from docs/parity.md.
"""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from typing import Any

from distilljax.core.method import Method, Phase
from distilljax.experiment import cards, catalogue, specs
from distilljax.methods import CATALOGUE, build
from distilljax.methods.registry import FAMILIES
from docs.site import api_pages, equations, guides


def page_of(name: str) -> str:
    """The page of a method, relative to the site."""
    return f"methods/{name}.md"


def equation(name: str) -> str:
    """What a method's docstring says up to its arguments, formulas set apart."""
    return equations.displayed(catalogue.lead(name))


def _linked(text: str, name: str) -> str:
    """Names of methods lead to their pages, other names to the reference."""

    def to_page(found: re.Match[str]) -> str:
        if found[1] not in CATALOGUE or found[1] == name:
            return found[0]
        return f"[`{found[1]}`](/docs/{page_of(found[1])})"

    text = re.sub(r"(?<![`\[])`(\w+)`(?![`\]])", to_page, text)
    return api_pages.linked(text, CATALOGUE[name].factory.__module__)


# One iteration


def _said(value: Any) -> str:
    """A weight, a decay or a draw in a line of pseudo-code."""
    text = re.sub(r"<function (\w+)[^>]*>", r"\1", repr(value))
    return re.sub(r"\w+=(?:None|False|\(\))(?:, )?", "", text).replace(", )", ")")


def _phase(phase: Phase) -> list[str]:
    lines, inner = [], "    "
    if phase.repeat > 1:
        lines.append(f"repeat {phase.repeat} times:")
    else:
        inner = ""
    batch = "a new batch" if phase.fresh else "the same batch"
    if not phase.trains:
        lines.append(f"{inner}{phase.name}: on {batch}, collect without gradient")
        return lines
    lines.append(f"{inner}update {', '.join(phase.trains)} on {batch}:")
    for name, draw in phase.draws.items():
        kind = type(draw).__name__
        lines.append(f"{inner}    {name} = {kind}(...)")
    summed = [
        term.name if term.weight == 1.0 else f"{_said(term.weight)} * {term.name}"
        for term in phase.terms
    ]
    lines.append(f"{inner}    minimise " + " + ".join(summed))
    return lines


def iteration(method: Method) -> str:
    """The updates of one iteration under a method's defaults, as pseudo-code."""
    lines, start = [], 0
    stages = [(stage.until, stage.phases) for stage in method.stages]
    for until, phases in [*stages, (None, method.phases)]:
        if stages:
            end = "on" if until is None else f"up to {until}"
            lines.append(f"# iterations from {start} {end}")
            start = until
        for phase in phases:
            lines += _phase(phase)
    for name, role in method.roles.items():
        follow = role.follow
        if follow is None:
            continue
        every = "" if follow.every == 1 else f"every {follow.every} iterations: "
        if follow.decay == 0.0:
            lines.append(f"{every}{name} = {follow.of}")
        else:
            decay = _said(follow.decay)
            lines.append(f"{every}{name} follows {follow.of}, decay {decay}")
    return "\n".join(lines)


# How to call it


@functools.cache
def configs() -> dict[str, list[str]]:
    """Shipped configs of every method, the smallest first."""
    found: dict[str, list[str]] = {name: [] for name in CATALOGUE}
    shipped = sorted(cards.shipped(), key=lambda c: (not c.startswith("digits/"), c))
    for config in shipped:
        found[cards.load(config)["method"]["name"]].append(config)
    return found


def _configured(name: str) -> Method:
    """A method as its first config has it, under its defaults if there is none."""
    if not configs()[name]:
        return build(name)
    options = cards.load(configs()[name][0]).to_dict()["method"]
    return build(options.pop("name"), **specs.resolve(options))


def _teacher_of(config: str) -> str:
    """The config of its teacher: where the run folder that it names comes from."""
    named = (cards.load(config).get("teacher") or "").removeprefix("runs/")
    if named in cards.shipped():
        return named
    folder = config.split("/")[0]
    start = cards.load(config)["method"].get("name")
    restores = build(start).sampling.start is not None
    return f"{folder}/{'restoration_teacher' if restores else 'teacher'}"


def example(name: str) -> str:
    """Python that trains a method and samples from its student."""
    method, shipped = _configured(name), configs()[name]
    given = [r for r, role in method.roles.items() if role.init == "given"]
    beside = [role for role in given if role != "teacher"]
    teaches = ", teacher=teacher" if method.taught else ""
    sampled = f"x = distilljax.sample(student, steps={method.sampling.steps}, count=16)"
    if beside:
        needed = "".join(f', "{role}": {role}_network' for role in beside)
        params = ", ".join(f'"{role}": {role}_params' for role in beside)
        lines = [
            f"method = distilljax.methods.{name}()",
            "student = distilljax.fit(",
            "    method,",
            f'    networks={{"backbone": network{needed}}},',
            f"    source=source{teaches},",
            f"    params={{{params}}},",
            ")",
        ]
    elif shipped:
        config = shipped[0]
        lines = []
        if method.taught:
            taught = _teacher_of(config)
            lines.append(
                f'teacher = distilljax.fit_card(distilljax.cards.load("{taught}"))'
            )
        lines += [
            f'config = distilljax.cards.load("{config}")',
            f"student = distilljax.fit_card(config{teaches})",
        ]
    else:
        lines = [
            "config = distilljax.cards.card(",
            f'    "{name}",',
            '    source={"name": "digits"},',
            '    networks={"backbone": {"name": "mlp"}},',
            "    cycles=2000,",
            "    batch_size=256,",
            ")",
            f"student = distilljax.fit_card(config{teaches})",
        ]
        if method.taught:
            made = 'distilljax.fit_card(distilljax.cards.load("digits/teacher"))'
            lines.insert(0, f"teacher = {made}")
    if method.sampling.start is None:
        lines.append(sampled)
    return "\n".join(["import distilljax", "", *lines])


def _shell(name: str) -> str:
    lines, method = [], _configured(name)
    for config in configs()[name][:1]:
        teacher = ""
        if method.taught:
            taught = _teacher_of(config)
            lines.append(f"distilljax train --config={taught} --out=runs/{taught}")
            teacher = f" --teacher=runs/{taught}"
        lines.append(f"distilljax train --config={config}{teacher} --out=runs/{config}")
        if method.sampling.start is None:
            steps = f"--steps={method.sampling.steps}"
            lines.append(f"distilljax sample --run=runs/{config} {steps}")
    return "\n".join(lines)


# What was measured


def _measured(name: str) -> list[str]:
    """Rows of the guides' tables that are about a method."""
    out = []
    for row in guides.rows():
        if row.cells[0] != f"`{name}`" or row.place.file == "docs/parity.md":
            continue
        head, cells = row.head[1:], row.cells[1:]
        where = row.place.link(f"{row.place.title}: {row.place.heading}")
        out += [
            where,
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
            "| " + " | ".join(cells) + " |",
            "",
        ]
    return out


def _parity(name: str) -> list[str]:
    """What docs/parity.md says of a method."""
    out, residuals = [], []
    for row in guides.rows():
        if row.place.file != "docs/parity.md":
            continue
        if row.cells[0] == name:
            _, release, factor, differs = row.cells
            if release == "none":
                release = "none was run"
            if factor:
                factor = f" Factor of its gradient over this one: {factor}."
            said = differs.rstrip(".") + "."
            out += [f"Released code: {release}.{factor}", "", said, ""]
        found = re.fullmatch(rf"`{name}(-[^`]+)?`", row.cells[0])
        if found and re.fullmatch(r"[\d.e+-]+", row.cells[4]):
            residuals.append(float(row.cells[4]))
    if residuals:
        out += [
            f"{len(residuals)} outputs of the released code are golden vectors; the "
            f"largest relative residual is {max(residuals):.1e} "
            "([all of them](/docs/parity.md)).",
            "",
        ]
    return out


def _pictures(name: str) -> list[str]:
    out = []
    for found in guides.pictures():
        if f"`{name}`" in found.about:
            out += [f"![{found.alt}](/{found.file})", "", f"{found.alt}: ", ""]
            out[-2] += found.place.link(found.place.title)
    return out


def bibtex(name: str) -> str:
    """The citation of a method."""
    cite = CATALOGUE[name].cite
    authors = " and ".join(cite.authors.split(", "))
    fields = {"title": f"{{{cite.title}}}", "author": authors, "year": cite.year}
    number = re.fullmatch(r"arXiv:(\S+)", cite.venue)
    if number:
        fields |= {"eprint": number[1], "archivePrefix": "arXiv"}
    else:
        fields["note"] = cite.venue
    lines = [f"  {key} = {{{value}}}," for key, value in fields.items()]
    return "\n".join([f"@misc{{{name},", *lines, "}"])


def _options(name: str) -> str:
    """The table of options; their own names are no references."""
    lines = []
    for line in catalogue.option_table(name).splitlines():
        found = re.match(r"\| `\w+` ", line)
        own = found[0] if found else ""
        lines.append(own + _linked(line.removeprefix(own), name))
    return "\n".join(lines)


def page(name: str) -> str:
    """The page of a method."""
    entry, method, found = CATALOGUE[name], build(name), catalogue.record(name)
    factory = entry.factory
    full = f"{factory.__module__}.{factory.__name__}"
    source = textwrap.indent(inspect.getsource(factory), "    ")
    family = f"[{entry.family}](/docs/methods/index.md#{_anchor(entry.family)})"
    where = f" ({entry.cite.equations})" if entry.cite.equations else ""
    lines = [
        f"# {name}",
        "",
        f"*{entry.summary[0].upper()}{entry.summary[1:]}.*",
        "",
        f"{catalogue.paper(name)}: {entry.cite.title}{where}. Family: {family}.",
        "",
        "## Equation",
        "",
        _linked(equation(name), name),
        "",
        "## One iteration",
        "",
        "```text",
        iteration(method),
        "```",
        "",
        f"Terms by name are functions in [`{name}`][{full}]:",
        "",
        f'??? quote "Source of `{name}`"',
        "",
        "    ```python",
        source.rstrip(),
        "    ```",
        "",
        "## Call",
        "",
        "```python",
        example(name),
        "```",
        "",
    ]
    if shell := _shell(name):
        lines += ["```bash", shell, "```", ""]
    if shipped := configs()[name]:
        lines += ["Configs: " + ", ".join(f"`{c}`" for c in shipped) + ".", ""]
    lines += ["| it needs | |", "|---|---|"]
    lines += [f"| {what} | {told} |" for what, told in catalogue.asks(found).items()]
    lines += ["", "## Options", "", _options(name), ""]
    if measured := _measured(name):
        lines += ["## Measured", "", *measured]
    own = [_linked(entry.differs, name), ""] if entry.differs else []
    if differs := [*own, *_parity(name)]:
        lines += ["## What differs", "", *differs]
    if pictures := _pictures(name):
        lines += ["## Pictures", "", *pictures]
    lines += ["## Cite", "", "```bibtex", bibtex(name), "```"]
    return "\n".join(lines) + "\n"


def _anchor(family: str) -> str:
    return family.replace(" ", "-")


def index() -> str:
    """All methods, family by family."""
    parts = [
        "# Methods\n\nA page a method: its equation, the updates of one iteration, how "
        "to call it, its options, what was measured and what differs from the paper's "
        "code. `distilljax methods` prints the catalogue. A method of your own: "
        "[adding a method](/docs/adding_a_method.md)."
    ]
    for family in FAMILIES:
        names = catalogue.chosen(family)
        table = ["| method | what it does | paper |", "|---|---|---|"]
        for name in names:
            link = f"[`{name}`](/docs/{page_of(name)})"
            summary = CATALOGUE[name].summary
            table.append(f"| {link} | {summary} | {catalogue.paper(name)} |")
        heading = f"## {family.capitalize()} {{ #{_anchor(family)} }}"
        parts += [heading, "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def navigation() -> list[str | dict]:
    """The pages, as mkdocs takes them."""
    out: list[str | dict] = ["methods/index.md"]
    for family in FAMILIES:
        pages = [{name: page_of(name)} for name in catalogue.chosen(family)]
        out.append({family.capitalize(): pages})
    return out
