"""What a compiled program moves between devices, and to the host.

Read from the text of the program, `jax.stages.Compiled.as_text`: the only place where
it stands what the compiler made of the shardings.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)
# What waits for the host: queues, and calls of Python functions.
HOST = re.compile(
    r" (?:infeed|outfeed|send|recv)(?:-start|-done)?\("
    r'|custom_call_target="[^"]*(?:callback|HostCompute)[^"]*"'
    r"|is_host_transfer=true",
    re.IGNORECASE,
)
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)="
    r"%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_LOOP = re.compile(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_FOUND = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\dm\d\w*)?\[([\d,]*)\]")
_BYTES = {"pred": 1.0, "c64": 8.0, "c128": 16.0}


class Collective(NamedTuple):
    """One instruction that moves arrays between devices.

    Attributes:
      kind: one of ``KINDS``.
      shapes: of the arrays that a device holds afterwards.
      bytes: of them together.
      looped: whether it stands inside a loop, and runs as often as that does.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    looped: bool


def _width(dtype: str) -> float:
    """Bytes of an element."""
    digits = re.search(r"\d+", dtype)
    return _BYTES.get(dtype, int(digits[0]) / 8 if digits else 0)


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of every computation of a program by its name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = None if line.startswith(" ") else _HEAD.match(line)
        if head is not None:
            lines = found.setdefault(head[1], [])
        else:
            lines.append(line)
    return found


def _calls(lines: list[str]) -> set[str]:
    """Names of the computations that some lines call."""
    pairs = [m.groups() for line in lines for m in _CALLED.finditer(line)]
    several = [re.findall(r"[\w.\-]+", many) for _, many in pairs if many]
    return {one for one, _ in pairs if one} | {
        name for names in several for name in names
    }


def _looped(found: dict[str, list[str]]) -> set[str]:
    """Names of the computations that stand inside a loop."""
    loops = [
        m for lines in found.values() for line in lines for m in _LOOP.finditer(line)
    ]
    todo, seen = [name for m in loops for name in m.groups()], set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += _calls(found.get(name, []))
    return seen


def collectives(compiled: Any) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    Args:
      compiled: `jax.stages.Compiled`, or its text.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    computations = _computations(text)
    inside, out = _looped(computations), []
    for name, lines in computations.items():
        for line in lines:
            match = _FOUND.search(line)
            if match is None:
                continue
            result, kind, started = match.groups()
            arrays = _ARRAY.findall(result)
            if started and kind != "all-reduce":
                # Started ones return what they read before what they write.
                arrays = arrays[len(arrays) // 2 :]
            shapes = [tuple(int(n) for n in dims.split(",") if n) for _, dims in arrays]
            sizes = [
                _width(dtype) * math.prod(shape)
                for (dtype, _), shape in zip(arrays, shapes, strict=True)
            ]
            out.append(
                Collective(kind, tuple(shapes), math.ceil(sum(sizes)), name in inside)
            )
    return out


def counts(found: list[Collective]) -> dict[str, int]:
    """How often a program holds each kind; those inside a loop once."""
    kinds = [one.kind for one in found]
    return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


def host_transfers(compiled: Any) -> list[str]:
    """Instructions of a compiled program that wait for the host.

    Args:
      compiled: `jax.stages.Compiled`, or its text.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    return [line.strip() for line in text.splitlines() if HOST.search(line)]
