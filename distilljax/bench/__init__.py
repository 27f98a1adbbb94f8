"""Every method on the same bench: one teacher, one network, one budget, one table."""

from distilljax.runtime.extras import needed

with needed("distilljax.bench"):
    from distilljax.bench.front import QUICK, SUITES, make_suite, run_suite
    from distilljax.bench.mixtures import draw_mixture, mixture, read_mixture
    from distilljax.bench.runner import run
    from distilljax.bench.suites import Entry, Suite

__all__ = [
    "QUICK",
    "SUITES",
    "Entry",
    "Suite",
    "draw_mixture",
    "make_suite",
    "mixture",
    "read_mixture",
    "run",
    "run_suite",
]

# Floors that modules here may import.
IMPORTS = (
    "runtime",
    "diffusion",
    "losses",
    "core",
    "methods",
    "networks",
    "data",
    "evaluation",
    "training",
    "sampling",
    "experiment",
)
