"""Messages that say what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Message for a name that does not exist.

    Args:
      kind: what was looked up, for example ``"method"`` or ``"config key"``.
      name: the name that came.
      known: the names that exist.

    Returns:
      One line with the name, the near matches and everything that exists.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or '(none)'}."
