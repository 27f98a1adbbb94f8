"""The catalogue as text: for the command line, the README and the docs.

``python -m distilljax.experiment.catalogue`` writes the generated pages of a checkout:
the README's table, ``docs/methods.md``, ``docs/compositions.md``, ``docs/systems.md``
and the types of ``distilljax.methods``. A test holds them equal to what is generated.
"""

from __future__ import annotations

import inspect
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from distilljax.experiment import compositions
from distilljax.methods import CATALOGUE, build
from distilljax.methods.registry import FAMILIES
from distilljax.runtime.errors import unknown

FORMATS = ("text", "md", "json")
BEGIN, END = "<!-- methods: generated -->\n", "<!-- end of methods -->\n"


def chosen(family: str | None = None) -> list[str]:
    """Names of the catalogue, of one family if one is given.

    Raises:
      ValueError: for an unknown family.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(unknown("family", family, FAMILIES))
    return [n for n, e in CATALOGUE.items() if family in (None, e.family)]


def options(name: str) -> dict[str, str]:
    """Defaults of a method's options, as they are written."""
    known = inspect.signature(CATALOGUE[name].factory).parameters
    return {key: _written(value.default) for key, value in known.items()}


def _written(default: Any) -> str:
    """A default as a config has it: without memory addresses."""
    if isinstance(default, type) or inspect.isfunction(default):
        return str(default.__name__)
    return re.sub(r"<function (\w+)[^>]*>", r"\1", repr(default))


def record(name: str) -> dict[str, Any]:
    """What is known of a method, as plain values."""
    entry, method = CATALOGUE[name], build(name)
    return {
        "name": name,
        "family": entry.family,
        "summary": entry.summary,
        "cite": str(entry.cite),
        "teacher": entry.teacher,
        "batch": sorted(method.batch),
        "roles": list(method.roles),
        "needs": sorted({n for role in method.roles.values() for n in role.needs}),
        "options": options(name),
        "differs": entry.differs,
    }


def asks(found: dict[str, Any]) -> dict[str, str]:
    """What a method of a `record` asks for, in words."""
    return {
        "batch": ", ".join(found["batch"]) or "conditions only",
        "roles": ", ".join(found["roles"]),
        "networks need": ", ".join(found["needs"]) or "nothing special",
    }


def text(names: Iterable[str]) -> str:
    """A paragraph a method, for a terminal."""
    lines = []
    for found in map(record, names):
        lines += [
            f"{found['name']}  ({found['family']})",
            f"  {found['summary']}",
            f"  cite: {found['cite']}",
            *(f"  {what}: {told}" for what, told in asks(found).items()),
        ]
    return "\n".join(lines)


def paper(name: str) -> str:
    """Authors and year, with a link where the venue is an arXiv number."""
    cite = CATALOGUE[name].cite
    first, *others = cite.authors.split(", ")
    who = first + (" et al." if len(others) > 2 else "".join(f", {o}" for o in others))
    number = re.fullmatch(r"arXiv:(\S+)", cite.venue)
    where = (
        f"[{cite.venue}](https://arxiv.org/abs/{number[1]})" if number else cite.venue
    )
    return f"{who} {cite.year}, {where}"


def table(names: Iterable[str], link: str | None = None) -> str:
    """A row a method, in markdown.

    Args:
      names: of methods.
      link: page whose headings are the names, empty for the same page; None for none.
    """
    lines = ["| id | family | what it does | paper |", "|---|---|---|---|"]
    for name in names:
        entry = CATALOGUE[name]
        shown = f"`{name}`" if link is None else f"[`{name}`]({link}#{name})"
        lines.append(f"| {shown} | {entry.family} | {entry.summary} | {paper(name)} |")
    return "\n".join(lines)


def formatted(names: Iterable[str], form: str) -> str:
    """The catalogue in one of `FORMATS`."""
    if form not in FORMATS:
        raise ValueError(unknown("format", form, FORMATS))
    if form == "json":
        return json.dumps([record(name) for name in names], indent=2)
    return table(names) if form == "md" else text(names)


def _arguments(name: str) -> dict[str, str]:
    """What the docstring of a factory says of its options."""
    doc = inspect.getdoc(CATALOGUE[name].factory) or ""
    part = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.M | re.S)
    found = re.findall(
        r"^  (\w+): (.*?)(?=^  \w+: |\Z)", part[1] if part else "", re.M | re.S
    )
    return {key: " ".join(said.split()) for key, said in found}


def lead(name: str) -> str:
    """A factory's docstring up to its arguments."""
    doc = inspect.getdoc(CATALOGUE[name].factory) or ""
    return re.split(r"^Args:\n", doc, maxsplit=1, flags=re.M)[0].strip()


def option_table(name: str) -> str:
    """A row an option: its default and what the docstring says, in markdown."""
    said = _arguments(name)
    lines = ["| option | default | |", "|---|---|---|"]
    for key, default in options(name).items():
        cells = (f"`{key}`", f"`{default}`", said.get(key, ""))
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def section(name: str, configs: Iterable[str]) -> str:
    """A method's part of the page: what it is, what it needs, its options."""
    found = record(name)
    lines = [f"## {name}", "", lead(name), ""]
    lines += [f"- Paper: {found['cite']}", f"- Family: {found['family']}"]
    lines += [f"- {w.capitalize()}: {told}" for w, told in asks(found).items()]
    if configs := [f"`{c}`" for c in configs]:
        lines.append(f"- Configs: {', '.join(configs)}")
    if found["differs"]:
        lines += ["", found["differs"]]
    return "\n".join([*lines, "", option_table(name)])


def page(configs: Iterable[str]) -> str:
    """``docs/methods.md``.

    Args:
      configs: names of the configs that are shipped, as in ``digits/scm``.
    """
    by_method: dict[str, list[str]] = {name: [] for name in CATALOGUE}
    for config in sorted(configs):
        by_method.get(config.rpartition("/")[2], []).append(config)
    head = (
        "# Methods\n\nOne section a method, out of its own file: equation and source, "
        "what it needs, its options. `distilljax methods` prints the same, with "
        "`--family` and `--format=md` or `json`.\n"
    )
    parts = [head + "\n" + table(CATALOGUE, "")]
    parts += [section(name, by_method[name]) for name in CATALOGUE]
    return "\n\n".join(parts) + "\n"


def systems(known: str, configs: Iterable[str]) -> str:
    """``docs/systems.md``: which published system is found where.

    Args:
      known: ids of systems and their code, ``docs/systems.tsv``.
      configs: names of the configs that are shipped.
    """
    code = dict(line.split("\t") for line in known.splitlines()[1:])
    entry = {name: name for name in CATALOGUE}
    entry |= {s: name for name, found in CATALOGUE.items() for s in found.systems}
    by_method: dict[str, list[str]] = {}
    for config in sorted(configs):
        by_method.setdefault(config.rpartition("/")[2], []).append(f"`{config}`")
    rows = []
    for system in sorted({*code, *entry}):
        name, repository = entry.get(system), code.get(system, "")
        cells = [
            f"`{system}`",
            f"`{name}`" if name else "",
            ", ".join(by_method.get(name or "", [])),
            f"[{repository}](https://github.com/{repository})" if repository else "",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    head = (
        "# Systems\n\nPublished systems for few-step generation by their ids, and the "
        f"entry of the catalogue that each is: {len(entry)} are there, the others are "
        "planned. The last column names the authors' code of a planned one, where it "
        "is public; [parity](parity.md) names that of the others.\n\n"
        "| system | entry | configs | code |\n|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def types() -> str:
    """``distilljax/methods/__init__.pyi``: what type checkers see of the factories."""
    found = [(CATALOGUE[name].factory.__module__, name) for name in CATALOGUE]
    found.append(("distilljax.methods.registry", "Entry"))
    lines = ["from typing import Any\n", "from distilljax.core.method import Method"]
    lines += [
        f"from {module} import {name} as {name}" for module, name in sorted(found)
    ]
    lines[-1] += "\n"
    lines.append("CATALOGUE: dict[str, Entry]\n")
    lines.append("def build(name: str, **options: Any) -> Method: ...")
    return "\n".join(lines) + "\n"


def readme(before: str) -> str:
    """A README with the table between its marks written again."""
    head, _, rest = before.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"the README needs the lines {BEGIN!r} and {END!r}")
    return (
        head + BEGIN + "\n" + table(CATALOGUE, "docs/methods.md") + "\n\n" + END + tail
    )


def pages(root: pathlib.Path) -> dict[pathlib.Path, Callable[[], str]]:
    """The generated files of a checkout, and how each is made."""
    configs = [f"{p.parent.name}/{p.stem}" for p in root.glob("configs/*/*.py")]
    return {
        root / "README.md": lambda: readme((root / "README.md").read_text()),
        root / "docs" / "methods.md": lambda: page(configs),
        root / "docs" / "compositions.md": compositions.page,
        root / "docs" / "systems.md": lambda: systems(
            (root / "docs" / "systems.tsv").read_text(), configs
        ),
        root / "distilljax" / "methods" / "__init__.pyi": types,
    }


def main() -> int:
    """Writes the generated files of the current folder's checkout."""
    for path, made in pages(pathlib.Path.cwd()).items():
        path.write_text(made())
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
