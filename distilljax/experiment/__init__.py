"""Runs as a user asks for them.

Configs and their values, recipes of releases, `fit`, `sample`, `edit`, evaluation while
training, compiling for chips that are not there.
"""

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
)
