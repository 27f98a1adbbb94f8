"""``python -m distilljax``."""

import sys

from distilljax.cli import main

sys.exit(main())
