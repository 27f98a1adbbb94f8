"""What the guides hold, read from their markdown: headings, tables and pictures.

Pages that are made for the site show rows and pictures of the guides, so that a number
is written down in one place.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Pages that are generated of the catalogue.
GENERATED = ("methods.md",)


def slug(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown makes it."""
    kept = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", kept)


class Place(NamedTuple):
    """Where something stands.

    Attributes:
      file: relative to the repository.
      title: of the page.
      heading: the nearest above, the title if there is none.
    """

    file: str
    title: str
    heading: str

    def link(self, text: str) -> str:
        """A link of the repository to it."""
        anchor = "" if self.heading == self.title else f"#{slug(self.heading)}"
        return f"[{text}](/{self.file}{anchor})"


class Row(NamedTuple):
    """A row of a table, with its head."""

    place: Place
    head: tuple[str, ...]
    cells: tuple[str, ...]


class Picture(NamedTuple):
    """A picture; ``about`` is the text next to it."""

    place: Place
    alt: str
    file: str
    about: str


def pages() -> list[str]:
    """Guides, relative to the repository, the README first."""
    guides = sorted(p.name for p in DOCS.glob("*.md") if p.name not in GENERATED)
    return ["README.md", *(f"docs/{name}" for name in guides)]


def _blocks(file: str) -> Iterator[tuple[Place, str]]:
    """Paragraphs of a page, each with its place; code is left out."""
    text = (ROOT / file).read_text()
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    title = heading = ""
    for block in re.split(r"\n\s*\n", text):
        found = re.match(r"(#+) (.*)", block.strip())
        if found:
            heading = found[2]
            title = title or heading
        yield Place(file, title, heading), block.strip("\n")


def cells(line: str) -> tuple[str, ...]:
    """Cells of a line of a table."""
    found = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return tuple(cell.strip() for cell in found)


@functools.cache
def rows() -> tuple[Row, ...]:
    """Rows of the tables of all guides."""
    return tuple(row for file in pages() for row in _rows(file))


def _rows(file: str) -> Iterator[Row]:
    for place, block in _blocks(file):
        lines = block.splitlines()
        for start, line in enumerate(lines):
            if re.fullmatch(r"\|[-:| ]+\|", line.strip()) and start:
                head = cells(lines[start - 1])
                for row in lines[start + 1 :]:
                    if row.startswith("|"):
                        yield Row(place, head, cells(row))


def pictures() -> Iterator[Picture]:
    """Pictures of all guides."""
    for file in pages():
        before = ""
        blocks = list(_blocks(file))
        for i, (place, block) in enumerate(blocks):
            for alt, where in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", block):
                path = (ROOT / file).parent / where
                after = blocks[i + 1][1] if i + 1 < len(blocks) else ""
                about = "\n".join((before, block, after))
                yield Picture(place, alt, str(path.relative_to(ROOT)), about)
            before = block


def gallery() -> str:
    """The page of all pictures."""
    parts, last = ["# Gallery\n\nThe pictures of the guides, each with its place."], ""
    for found in pictures():
        if found.place.title != last:
            last = found.place.title
            parts.append(f"## {last}")
        shown = f"![{found.alt}](/{found.file})"
        parts.append(f"{shown}\n\n{found.alt}: {found.place.link(found.place.heading)}")
    return "\n\n".join(parts) + "\n"
