"""Pages of the API reference: one a module, found by walking the package.

The sources are read and not imported. `references` tells what a name in single
backticks means, in docstrings and on the pages of methods.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from docs.site.guides import ROOT

PACKAGE = "distilljax"


class Module(NamedTuple):
    """A module that has a page.

    Attributes:
      name: its full name.
      file: relative to the repository.
      summary: first line of its docstring.
      defines: public names with a docstring that it defines, ``Class.method`` too.
      exports: public names that it takes from other modules, with their full names.
      package: whether it is a folder.
    """

    name: str
    file: str
    summary: str
    defines: tuple[str, ...]
    exports: dict[str, str]
    package: bool

    @property
    def page(self) -> str:
        """Its page, relative to the site."""
        *_, last = place = self.name.split(".")[1:] or [""]
        if self.package:
            place = [*place, "index"] if last else ["index"]
        return "/".join(["api", *place]) + ".md"


def _defined(body: list[ast.stmt], above: str = "") -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or ast.get_docstring(node) is None:
            continue
        yield above + node.name
        if isinstance(node, ast.ClassDef) and not above:
            yield from _defined(node.body, f"{node.name}.")


@functools.cache
def modules() -> dict[str, Module]:
    """Public modules of the package by full name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[-1] == "__init__"
        parts = parts[:-1] if package else parts
        if any(part.startswith("_") for part in parts):
            continue
        tree = ast.parse(path.read_text())
        exports = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if package and isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
            if node.module.split(".")[0] == PACKAGE and not alias.name.startswith("_")
        }
        name = ".".join(parts)
        found[name] = Module(
            name,
            str(path.relative_to(ROOT)),
            (ast.get_docstring(tree) or "").split("\n")[0],
            tuple(_defined(tree.body)),
            exports,
            package,
        )
    return found


@functools.cache
def short_names() -> dict[str, str]:
    """Short names of modules by their full ones."""
    import distilljax

    return {full: f"{PACKAGE}.{short}" for short, full in distilljax._places().items()}


@functools.cache
def _known() -> dict[str, str | None]:
    """What a dotted name means, if it means one thing."""
    meant: dict[str, set[str]] = {}

    def enter(name: str, target: str, least: int = 1) -> None:
        parts = name.split(".")
        for start in range(len(parts) - least + 1):
            meant.setdefault(".".join(parts[start:]), set()).add(target)

    for module in modules().values():
        enter(module.name, module.name)
        for name in module.defines:
            # A method of a class is told by its class.
            full = f"{module.name}.{name}"
            enter(full, full, least=name.count(".") + 1)
    for module in modules().values():
        for name, target in module.exports.items():
            owner, _, own = target.rpartition(".")
            if owner in modules() and own in modules()[owner].defines:
                enter(f"{module.name}.{name}", target)
    return {n: next(iter(t)) if len(t) == 1 else None for n, t in meant.items()}


def meaning(name: str, module: str = "") -> str | None:
    """The full name that is meant by a shorter one.

    Args:
      name: as it stands in backticks.
      module: where it stands, whose own names come first.
    """
    if module in modules() and name in modules()[module].defines:
        return f"{module}.{name}"
    return _known().get(name)


def linked(text: str, module: str = "") -> str:
    """Text whose names in single backticks are references where they mean one thing."""

    def reference(found: re.Match[str]) -> str:
        target = meaning(found[1], module)
        return found[0] if target is None else f"[{found[0]}][{target}]"

    return re.sub(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?!`)", reference, text)


def _inside(package: Module) -> list[Module]:
    return [m for m in modules().values() if m.name.rpartition(".")[0] == package.name]


def page(module: Module) -> str:
    """The page of a module, for mkdocstrings."""
    lines = [f"# {module.name} {{ #{module.name} }}", ""]
    short = short_names().get(module.name)
    if short:
        lines += [f"Short name: `{short}`. Source: `{module.file}`.", ""]
    lines.append(f"::: {module.name}")
    if module.package:
        own = [name for name in module.defines if "." not in name]
        lines += ["    options:", f"      members: {own or 'false'}", ""]
    if module.exports:
        names = (
            f"[`{name}`][{target}]"
            if (target := meaning(full, module.name))
            else f"`{name}`"
            for name, full in sorted(module.exports.items())
        )
        lines += ["**Names of this folder:** " + ", ".join(names), ""]
    if inside := _inside(module):
        lines += ["| module | what lives there |", "|---|---|"]
        lines += [f"| [`{m.name}`][{m.name}] | {m.summary} |" for m in inside]
    return "\n".join(lines) + "\n"


def navigation(name: str = PACKAGE) -> list[str | dict]:
    """The pages below a folder, as mkdocs takes them."""
    package = modules()[name]
    out: list[str | dict] = [package.page]
    for module in _inside(package):
        title = module.name.rpartition(".")[2]
        out.append({title: navigation(module.name) if module.package else module.page})
    return out
