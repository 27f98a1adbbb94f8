"""The command line, one function a command, and the quick start."""

from distilljax.cli.app import main

__all__ = ["main"]

# Floors that modules here may import.
IMPORTS = (
    "runtime",
    "core",
    "data",
    "evaluation",
    "training",
    "sampling",
    "experiment",
    "bench",
)
