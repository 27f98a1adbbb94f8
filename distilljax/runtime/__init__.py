"""What knows nothing of diffusion.

Words for wrong arguments and missing packages, files that are whole or absent, axes of
split arrays, the terminal.
"""

# Floors that modules here may import.
IMPORTS = ()
