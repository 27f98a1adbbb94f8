"""distilljax: diffusion and flow teachers distilled to 1-4 steps, in JAX.

Modules have short names here: ``distilljax.paths`` is
``distilljax.diffusion.paths``, and ``from distilljax.times import Pair`` finds the same
module. They and the functions of the front are imported on first use, so that ``import
distilljax.losses`` loads jax and numpy only.
"""

import functools
import importlib
import importlib.machinery
import sys
from typing import TYPE_CHECKING

from distilljax.__about__ import __version__ as __version__
from distilljax.runtime.extras import needed

if TYPE_CHECKING:
    from distilljax import (
        data,
        evaluation,
        losses,
        methods,
        networks,
        sampling,
        training,
    )
    from distilljax.core import composition, draws, method
    from distilljax.core.binding import Network
    from distilljax.core.composition import compose
    from distilljax.diffusion import (
        fields,
        flow_maps,
        oracles,
        paths,
        predictions,
        solvers,
        times,
    )
    from distilljax.experiment import api, cards
    from distilljax.experiment.api import fit, fit_card, load, sample
    from distilljax.experiment.image_edits import edit
    from distilljax.losses import corrections, metrics, transforms
    from distilljax.sampling import editing

_LAZY = {
    "Network": ("distilljax.core.binding", "Network"),
    "compose": ("distilljax.core.composition", "compose"),
    "edit": ("distilljax.experiment.image_edits", "edit"),
    "fit": ("distilljax.experiment.api", "fit"),
    "fit_card": ("distilljax.experiment.api", "fit_card"),
    "load": ("distilljax.experiment.api", "load"),
    "sample": ("distilljax.experiment.api", "sample"),
}
# Folders whose modules have a short name; those of the others are reached through them.
_OPEN = ("runtime", "diffusion", "losses", "core", "sampling", "experiment", "cli")
_FOLDERS = (*_OPEN, "methods", "networks", "data", "evaluation", "training", "bench")
# Written out, since type checkers read it.
__all__ = [
    "Network",
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


@functools.cache
def _places() -> dict[str, str]:
    """Full names of the modules that have a short one, by it."""
    import pkgutil

    found = {}
    for folder in _OPEN:
        where = [f"{parent}/{folder}" for parent in __path__]
        for module in pkgutil.iter_modules(where):
            found[module.name] = f"{__name__}.{folder}.{module.name}"
    return found


class _Short:
    """Finds ``distilljax.paths`` where it lives: the same module by another name."""

    def __init__(self):
        self.specs = {}

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.rpartition(".")
        if package != __name__ or name in _FOLDERS or name not in _places():
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec):
        module = importlib.import_module(_places()[spec.name.rpartition(".")[2]])
        self.specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module):
        # It has run under its full name, which it keeps.
        module.__spec__ = self.specs.pop(module.__spec__.name)


sys.meta_path.insert(0, _Short())

# Type checkers see the imports above, and so know a name that does not exist.
if not TYPE_CHECKING:

    def __getattr__(name: str):
        with needed(f"distilljax.{name}"):
            if name in _LAZY:
                module, attribute = _LAZY[name]
                return getattr(importlib.import_module(module), attribute)
            if name in _places():
                return importlib.import_module(_places()[name])
            if name in _FOLDERS:
                return importlib.import_module(f"distilljax.{name}")
        raise AttributeError(f"module 'distilljax' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
