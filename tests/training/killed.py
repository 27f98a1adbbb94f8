"""A run that kills itself; started by `test_resume` in a process of its own."""

import os
import signal
import sys

from distilljax.training import Hooks, train
from tests.training import small
from tests.training.test_cycle import NETWORKS
from tests.training.test_loop import source
from tests.training.test_state import TEACHER

CONFIG = {
    "cycles": 12,
    "batch_size": 32,
    "log_every": 1,
    "sample_every": 1,
    "default": {"lr": 1e-2, "ema": 0.9, "clip": 1.0},
    "checkpoint": {"every": 4, "keep": 2},
}


def run(folder, kill_at: int | None = None):
    """Trains in a folder; kills the process without warning at a cycle."""

    def kill(view):
        if view.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return train(
        small.critic_and_student(2),
        NETWORKS,
        {"teacher": TEACHER},
        source(),
        CONFIG,
        folder,
        hooks=Hooks(sample=kill),
        progress=False,
    )


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
