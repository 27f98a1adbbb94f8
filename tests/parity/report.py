"""The measured part of docs/parity.md.

    python -m tests.parity.report [--write] [FILE ...]

Runs our methods on the golden vectors, all of them or those that are named, and prints
a row for every output; ``--write`` puts the rows in place of the page's own. A file
that no case runs, or whose run fails, has a row that says so. All take minutes.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterable, Iterator

import jax

from tests.parity import measured, vectors

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "parity.md"
HEAD = (
    "| file | output | official k | our k | residual | tolerance |",
    "|---|---|---|---|---|---|",
)


def number(value: float | None) -> str:
    """A constant in a cell of the table."""
    return "" if value is None else f"{value:.6g}"


def rows(name: str) -> Iterator[str]:
    """Rows of a file."""
    vector = vectors.Vector(name)
    try:
        found = measured.measured(vector)
    except KeyError as error:
        yield f"| `{name}` | | | | no case runs it: {error.args[0]} | |"
        return
    except Exception as error:  # the other files are measured all the same
        text = " ".join(str(error).split())[:100].replace("|", "/")
        yield f"| `{name}` | | | | {type(error).__name__}: {text} | |"
        return
    for output, wanted in vector.outputs.items():
        if output not in found:
            yield f"| `{name}` | {output} | | | no case runs it | |"
            continue
        k, residual = found[output]
        cells = (
            number(wanted["k"]),
            number(k),
            f"{residual:.1e}",
            f"{wanted['tolerance']:g}",
        )
        yield f"| `{name}` | {output} | {' | '.join(cells)} |"


def listed(page: str) -> list[str]:
    """The rows of the page's table."""
    return [line for line in page.splitlines() if line.startswith("| `")]


def named(row: str) -> str:
    """The file of a row."""
    return row.split("`")[1]


def merged(page: str, new: Iterable[str]) -> str:
    """The page with new rows in place of those of the same files.

    The table is the last thing on the page.
    """
    new = list(new)
    files = {named(row) for row in new}
    start = page.index(HEAD[0])
    kept = [r for r in listed(page[start:]) if named(r) not in files]
    ordered = sorted([*kept, *new], key=named)
    return page[:start] + "\n".join((*HEAD, *ordered)) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """1 if a name is not known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args(arguments)
    strangers = sorted(set(given.files) - set(vectors.NAMES))
    if strangers:
        print(f"no golden vectors {strangers}; known are {vectors.NAMES}")
        return 1
    jax.config.update("jax_enable_x64", True)
    print("\n".join(HEAD))
    for name in given.files or vectors.NAMES:
        found = list(rows(name))
        print("\n".join(found), flush=True)
        if given.write:
            PAGE.write_text(merged(PAGE.read_text(), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
