"""``python -m distilljax``."""

import sys

from distilljax.cli.app import main

sys.exit(main())
