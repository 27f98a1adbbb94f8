"""How the methods of the catalogue compute what the files hold, by family.

A family's module has a function per method: ``METHOD(vector) -> {output: Run}``,
``METHOD_laws(vector) -> {output: sampled times}`` in the measure that the file names,
and ``METHOD_tables(vector) -> {output: values}``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.parity.cases import composed, consistency, flow_maps, matching, policies
from tests.parity.vectors import Run, Vector

MODULES = (consistency, flow_maps, matching, composed, policies)


def _function(name: str) -> Callable[[Vector], Any]:
    for module in MODULES:
        if hasattr(module, name):
            return getattr(module, name)
    raise KeyError(f"tests/parity/cases has no function {name!r}")


def runs(vector: Vector) -> dict[str, Run]:
    """Runs by output."""
    return _function(vector.method)(vector)


def laws(vector: Vector) -> dict[str, Any]:
    """Sampled times by output."""
    return _function(f"{vector.method}_laws")(vector)


def tables(vector: Vector) -> dict[str, Any]:
    """Values by output."""
    return _function(f"{vector.method}_tables")(vector)
