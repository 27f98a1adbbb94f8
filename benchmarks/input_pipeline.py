"""Training step with the input pipeline against a step on a constant batch.

Two runs of `distilljax.training.train` take turns: one on the digits through the
shuffled, stacked, resumable pipeline, one on an iterator that returns the same batch on
the device every time.
"""

from __future__ import annotations

import sys

from benchmarks import measure, workload
from benchmarks.measure import Result, Scale

STEPS = 20
LIMIT = 1.05


def run(scale: Scale) -> list[Result]:
    """All results of this file."""
    steps = scale.steps(STEPS)
    work = workload.card("teacher", scale)
    constant = workload.Constant(workload.first_batch(work))
    with (
        workload.Trainer(work, steps) as fed,
        workload.Trainer(work, steps, constant) as still,
    ):
        pairs = measure.interleaved(fed, still, scale.pairs)
    return [
        measure.ratio(
            "input pipeline, flow_matching",
            "train on the pipeline over train on a constant batch",
            pairs,
            limit=LIMIT,
            steps=steps,
        )
    ]


if __name__ == "__main__":
    sys.exit(measure.main(run, "input_pipeline", __doc__))
