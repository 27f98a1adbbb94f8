"""What every method is made of.

Networks as functions, the context of a term, the records of a method, computations that
terms share (`draws`), and `compose`.
"""

# Floors that modules here may import.
IMPORTS = ("runtime", "diffusion")
