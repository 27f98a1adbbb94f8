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
    """Builds a registered method.

    Args:
      name: registry id.
      **options: arguments of its factory.

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
