"""All benchmarks, one table.

python -m benchmarks [--quick] [--pairs N] [--out benchmarks/results.json]
"""

import sys

from benchmarks import (
    compile_time,
    data_sources,
    dmd2_cycle,
    guarded_update,
    import_time,
    input_pipeline,
    measure,
    sampling,
    scm_jvp,
    trainer_step,
)
from benchmarks.measure import Result, Scale

ALL = (
    trainer_step,
    input_pipeline,
    data_sources,
    dmd2_cycle,
    guarded_update,
    sampling,
    scm_jvp,
    compile_time,
    import_time,
)


def run(scale: Scale) -> list[Result]:
    """The results of all files."""
    results = []
    for module in ALL:
        print(f"{module.__name__.partition('.')[2]} ...", file=sys.stderr, flush=True)
        results += module.run(scale)
    return results


if __name__ == "__main__":
    sys.exit(measure.main(run, "all", __doc__))
