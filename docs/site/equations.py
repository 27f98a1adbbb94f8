"""Docstrings as text with equations: long formulas stand on lines of their own."""

from __future__ import annotations

import re
import textwrap

# From how many characters on a formula does, and one that begins a paragraph.
LONG, FIRST = 24, 12


def _is_formula(span: str, first: bool) -> bool:
    if re.search(r"\w\(\w+=|=\"", span):
        return span.startswith("compose(")
    long = len(span) >= (FIRST if first else LONG)
    return long and re.search(r" [=+-] |[|^/]", span) is not None


def _set_apart(paragraph: str) -> str:
    """A paragraph whose formulas stand on lines of their own."""
    text = " ".join(paragraph.split())
    spans = re.compile(r"``([^`]+)``(\s*\((?:eqs?\.|Algorithm)[^)]*\))?\s?([.,;:]?)")
    out, last = [], 0
    for found in spans.finditer(text):
        if not _is_formula(found[1], found.start() == 0):
            continue
        before, source = text[last : found.start()].strip(), (found[2] or "").strip()
        if before:
            out.append(before)
        formula = found[1] + ("," if found[3] == "," else "")
        wrapped = textwrap.wrap(formula, 84, subsequent_indent="    ")
        wrapped[-1] += f"        {source}" if source else ""
        out.append("\n".join(["```text", *wrapped, "```"]))
        last = found.end()
    if rest := text[last:].strip():
        out.append(rest)
    return "\n\n".join(out)


def displayed(lead: str) -> str:
    """A docstring up to its arguments, its formulas set apart."""
    out = []
    for block in re.split(r"\n\s*\n", lead):
        if block.startswith("    "):
            out.append(f"```text\n{textwrap.dedent(block)}\n```")
        elif block.startswith("- "):
            out.append(block)
        else:
            out.append(_set_apart(block))
    return "\n\n".join(out)


def of(text: str) -> list[str]:
    """The formulas that a text sets apart."""
    return re.findall(r"```text\n(.*?)\n```", text, re.S)
