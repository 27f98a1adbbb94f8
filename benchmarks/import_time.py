"""``import distilljax.losses`` on top of ``import jax``, in fresh processes.

A pair is the seconds of both imports in one new interpreter, the second after the
first; the result is the median of the second.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np

from benchmarks import measure
from benchmarks.measure import Result, Scale

LIMIT = 0.2
ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
import json, sys, time
began = time.perf_counter()
import jax
between = time.perf_counter()
before = set(sys.modules)
import distilljax.losses
ended = time.perf_counter()
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({
    "jax": between - began,
    "losses": ended - between,
    "loaded": sorted(new - {n for n in sys.stdlib_module_names}),
}))
"""


def once() -> dict:
    """Seconds of both imports, and the top-level packages that the second loads."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout)


def run(scale: Scale) -> list[Result]:
    """All results of this file."""
    once()
    rows = [once() for _ in range(scale.pairs)]
    pairs = np.asarray([[row["losses"], row["jax"]] for row in rows])
    value, low, high = measure.bounds(pairs[:, 0])
    loaded = sorted({name for row in rows for name in row["loaded"]})
    foreign = [n for n in loaded if n not in ("distilljax", "jax", "jaxlib", "numpy")]
    return [
        {
            "name": "import distilljax.losses [s]",
            "what": "seconds after import jax",
            "value": value,
            "low": low,
            "high": high,
            "limit": LIMIT,
            "goal": LIMIT,
            "passed": value <= LIMIT,
            "milliseconds": (1e3 * np.median(pairs, axis=0)).tolist(),
            "pairs": pairs.tolist(),
        },
        measure.fact(
            "packages beside jax and numpy",
            "top-level packages that import distilljax.losses loads",
            len(foreign),
            0,
            packages=foreign,
            loaded=loaded,
        ),
    ]


if __name__ == "__main__":
    sys.exit(measure.main(run, "import_time", __doc__))
