"""The catalogue: every registered method by its name.

``distilljax.methods.scm(...)`` is a method's factory, ``build("scm", ...)`` the same by
name, `CATALOGUE` what is known of every one. A method registers itself in its own file,
see `distilljax.methods.registry`.
"""

from __future__ import annotations

from typing import Any

from distilljax.core.method import Method
from distilljax.methods import registry
from distilljax.methods.registry import Entry

# Entries by name, in the order of tables.
CATALOGUE: dict[str, Entry] = registry.discover(__name__, __path__)


def build(name: str, **options: Any) -> Method:
    """Builds a registered method, or a composition of several.

    ``build("dmd2+mean_flow", weights={"mean_flow": 0.5}, dmd2={"steps": (1,)})`` is
    ``compose(dmd2(steps=(1,)), mean_flow(), weights=...)``.

    Args:
      name: registry id, or several joined by "+".
      **options: arguments of the factory; of a composition the mappings ``weights``,
        ``repeats``, ``draws`` and ``rename`` of `compose`, and arguments of a factory
        under the name of its method.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown name or option, with the near matches, or an option
        that is NaN or infinite.
    """
    return registry.build(CATALOGUE, name, **options)


globals().update({name: entry.factory for name, entry in CATALOGUE.items()})
__all__ = ["CATALOGUE", "Entry", "build", *CATALOGUE]

# Floors that modules here may import.
IMPORTS = ("runtime", "diffusion", "losses", "core")
