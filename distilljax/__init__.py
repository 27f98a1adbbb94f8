"""distilljax: diffusion and flow teachers distilled to 1-4 steps, in JAX.

Sub-modules and the top-level functions are imported on first use, so that
``import distilljax.losses`` loads jax and numpy only.
"""

import importlib
from typing import TYPE_CHECKING

from distilljax._version import __version__ as __version__
from distilljax.extras import needed

if TYPE_CHECKING:
    from distilljax import (
        api,
        cards,
        composition,
        corrections,
        data,
        draws,
        editing,
        evaluation,
        fields,
        flow_maps,
        losses,
        method,
        methods,
        metrics,
        networks,
        oracles,
        paths,
        predictions,
        sampling,
        solvers,
        times,
        training,
        transforms,
    )
    from distilljax.api import fit, fit_card, load, sample
    from distilljax.composition import compose
    from distilljax.image_edits import edit

_LAZY = {
    "compose": ("distilljax.composition", "compose"),
    "edit": ("distilljax.image_edits", "edit"),
    "fit": ("distilljax.api", "fit"),
    "fit_card": ("distilljax.api", "fit_card"),
    "load": ("distilljax.api", "load"),
    "sample": ("distilljax.api", "sample"),
}
# Written out, since type checkers read it.
__all__ = [
    "__version__",
    "api",
    "cards",
    "compose",
    "composition",
    "corrections",
    "data",
    "draws",
    "edit",
    "editing",
    "evaluation",
    "fields",
    "fit",
    "fit_card",
    "flow_maps",
    "load",
    "losses",
    "method",
    "methods",
    "metrics",
    "networks",
    "oracles",
    "paths",
    "predictions",
    "sample",
    "sampling",
    "solvers",
    "times",
    "training",
    "transforms",
]
_MODULES = frozenset(__all__) - {*_LAZY, "__version__"}


# Type checkers see the imports above, and so know a name that does not exist.
if not TYPE_CHECKING:

    def __getattr__(name: str):
        with needed(f"distilljax.{name}"):
            if name in _LAZY:
                module, attribute = _LAZY[name]
                return getattr(importlib.import_module(module), attribute)
            if name in _MODULES:
                return importlib.import_module(f"distilljax.{name}")
        raise AttributeError(f"module 'distilljax' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
