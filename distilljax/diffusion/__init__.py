"""The mathematics: paths, predictions, fields, flow maps, solvers, times, samplers.

Functions of arrays and frozen dataclasses; imports jax and numpy only.
"""

# Floors that modules here may import.
IMPORTS = ("runtime",)
