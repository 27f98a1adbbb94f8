"""The digits job as one of several processes; started by `test_processes`.

It says how many samples of a batch it reads.

Arguments: JSON of what disturbs it, then those of ``distilljax``.

    slow: seconds that every cycle takes longer
    hold: number of a checkpoint whose writing never ends; the file ``held`` in the run
      folder's parent says that it has begun
    heartbeat: seconds after which a silent process counts as dead
    fail: cycle at which the data of this process cannot be read
    hang: cycle at which they never come
    patience: seconds that it waits for the others
"""

import functools
import json
import pathlib
import sys
import time

import orbax.checkpoint as ocp

from distilljax import cli
from distilljax.data import pipeline
from distilljax.training import distributed, feed


def disturb(slow=0.0, hold=None, heartbeat=None, fail=None, hang=None, patience=None):
    read, take, finalize = (
        feed.Feed.next,
        pipeline.take,
        ocp.StandardCheckpointHandler.finalize,
    )

    def slowly(self, step):
        time.sleep(slow)
        if step == fail:
            raise OSError(f"the disk is gone at cycle {step}")
        if step == hang:
            time.sleep(600)
        return read(self, step)

    def noted(source, indices, pool=None):
        print(f"reads {len(indices)} samples of a batch", flush=True)
        return take(source, indices, pool)

    def held(self, directory):
        run = next(
            p for p in pathlib.Path(directory).parents if p.name == "checkpoints"
        )
        if str(hold) in str(pathlib.Path(directory).relative_to(run)).split("/")[0]:
            (run.parent.parent / "held").touch()
            time.sleep(600)
        return finalize(self, directory)

    feed.Feed.next, pipeline.take = slowly, noted
    if hold is not None:
        ocp.StandardCheckpointHandler.finalize = held
    if patience is not None:
        distributed.PATIENCE = patience
    if heartbeat is not None:
        distributed.initialize = functools.partial(
            distributed.initialize, heartbeat=heartbeat, shutdown=heartbeat
        )


if __name__ == "__main__":
    disturb(**json.loads(sys.argv[1]))
    sys.exit(cli.main(sys.argv[2:]))
