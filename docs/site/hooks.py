"""Hooks of mkdocs: pages that are made while the site is built, and links.

Pages are written with links of the repository, relative to where they lie or from its
root (``/docs/bench.md``); here they become links of the site.
"""

from __future__ import annotations

import ast
import functools
import json
import posixpath
import re
from collections.abc import Callable
from typing import Any

from docs.site import api_pages, guides, method_pages
from docs.site.guides import ROOT

Pages = dict[str, Callable[[], str]]


def _read(file: str) -> Callable[[], str]:
    return (ROOT / file).read_text


def notebook(file: str) -> str:
    """A notebook as markdown."""
    cells = json.loads((ROOT / file).read_text())["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        parts.append(f"```python\n{text}\n```" if code else text)
    parts.insert(1, f"*This page is the notebook `{file}`.*")
    return "\n\n".join(parts) + "\n"


def script(file: str) -> str:
    """An example with its docstring above it."""
    code = (ROOT / file).read_text()
    doc = ast.get_docstring(ast.parse(code)) or file
    title, _, text = doc.partition("\n")
    body = code[code.index('"""', 3) + 3 :].strip()
    head = f"# {title.rstrip('.')}\n{text}\n\n`{file}`:\n\n"
    return f"{head}```python\n{body}\n```\n"


@functools.cache
def _examples() -> dict[str, str]:
    """Pages of examples by their files."""
    found = sorted((ROOT / "examples").glob("*.*"))
    return {f"examples/{p.name}": f"examples/{p.stem}.md" for p in found if p.is_file()}


@functools.cache
def made() -> Pages:
    """Pages that are made, by their place on the site."""
    out: Pages = {
        "index.md": _read("README.md"),
        "contributing.md": _read("CONTRIBUTING.md"),
        "changelog.md": _read("CHANGELOG.md"),
        "gallery.md": guides.gallery,
        "methods/index.md": method_pages.index,
    }
    for name in method_pages.CATALOGUE:
        out[method_pages.page_of(name)] = functools.partial(method_pages.page, name)
    for file, page in _examples().items():
        write = notebook if file.endswith(".ipynb") else script
        out[page] = functools.partial(write, file)
    for module in api_pages.modules().values():
        out[module.page] = functools.partial(api_pages.page, module)
    return out


@functools.cache
def _places() -> dict[str, str]:
    """Pages of the site by files of the repository, where they differ."""
    modules = {m.file: m.page for m in api_pages.modules().values()}
    return {
        "README.md": "index.md",
        "CONTRIBUTING.md": "contributing.md",
        "CHANGELOG.md": "changelog.md",
        "docs/methods.md": "methods/index.md",
        **_examples(),
        **modules,
    }


def _source(page: str) -> str:
    """The file of the repository whose links a page has."""
    back = {place: file for file, place in _places().items()}
    if page.startswith("methods/"):
        return f"docs/{page}"
    return back.get(page, f"docs/{page}")


def moved(link: str, page: str) -> str:
    """A link of the repository as one of the site.

    Args:
      link: relative to the file that the page is made of, or from the root.
      page: where it stands, relative to the site.
    """
    if re.match(r"\w+:|#", link):
        return link
    where, mark, anchor = link.partition("#")
    folder = posixpath.dirname(_source(page))
    file = posixpath.normpath(posixpath.join("/", folder, where)).lstrip("/")
    if file == "docs/methods.md" and anchor in method_pages.CATALOGUE:
        file, mark, anchor = f"docs/{method_pages.page_of(anchor)}", "", ""
    target = _places().get(file, file.removeprefix("docs/"))
    start = posixpath.dirname(page) or "."
    return posixpath.relpath(target, start) + mark + anchor


def on_config(config: Any) -> Any:
    """Adds what is made to the navigation."""
    examples = list(_examples().items())
    notebooks = [page for file, page in examples if file.endswith(".ipynb")]
    scripts = [page for file, page in examples if not file.endswith(".ipynb")]
    config.nav = [
        *config.nav[:1],
        {"Methods": method_pages.navigation()},
        *config.nav[1:],
        {"Examples": [*notebooks, *scripts]},
        {"API": api_pages.navigation()},
        {"Project": ["contributing.md", "changelog.md"]},
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made."""
    from mkdocs.structure.files import File

    for name in guides.GENERATED:
        found = files.get_file_from_path(name)
        if found is not None:
            files.remove(found)
    for page, write in made().items():
        files.append(File.generated(config, page, content=write()))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Makes links those of the site; code is left alone."""
    where = page.file.src_uri
    if where.startswith("api/"):
        return markdown

    def mend(found: re.Match[str]) -> str:
        if found[2] is None:
            return found[0]
        return f"{found[1]}({moved(found[2], where)})"

    pattern = r"^ *```.*?^ *```$|(\[(?:[^][]|\[[^][]*\]\([^)]*\))*\])\(([^)\s]+)\)"
    return re.sub(pattern, mend, markdown, flags=re.M | re.S)
