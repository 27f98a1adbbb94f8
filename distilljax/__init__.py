"""distilljax: diffusion and flow teachers distilled to 1-4 steps, in JAX.

Sub-modules and the top-level functions are imported on first use, so that
``import distilljax.losses`` loads jax and numpy only.
"""

import importlib

from distilljax._version import __version__ as __version__

_LAZY = {
    "compose": ("distilljax.composition", "compose"),
    "edit": ("distilljax.image_edits", "edit"),
    "fit": ("distilljax.api", "fit"),
    "fit_card": ("distilljax.api", "fit_card"),
    "load": ("distilljax.api", "load"),
    "sample": ("distilljax.api", "sample"),
}
_MODULES = (
    "api",
    "cards",
    "composition",
    "corrections",
    "data",
    "draws",
    "editing",
    "evaluation",
    "fields",
    "flow_maps",
    "losses",
    "method",
    "methods",
    "metrics",
    "networks",
    "oracles",
    "paths",
    "predictions",
    "sampling",
    "solvers",
    "times",
    "training",
    "transforms",
)

__all__ = ["__version__", *_LAZY, *_MODULES]


def __getattr__(name: str):
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(importlib.import_module(module), attribute)
    if name in _MODULES:
        return importlib.import_module(f"distilljax.{name}")
    raise AttributeError(f"module 'distilljax' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
