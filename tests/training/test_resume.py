import json
import os
import signal
import subprocess
import sys
import warnings

from tests.training import killed
from tests.training.test_loop import equal


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines
    ]


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    """N + M cycles equal N, SIGKILL, restore, M."""
    whole = killed.run(tmp_path / "whole")
    folder = tmp_path / "killed"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.training.killed", str(folder), "7"],
        env=os.environ,
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    assert not (folder / "checkpoints" / "12").exists()
    # Its lock names it, and does not outlive it.
    assert json.loads((folder / ".lock").read_text())["process"] > 0
    # Metrics are read in groups, so that the last few cycles may not be written; those
    # up to the checkpoint are, and the rest is trained and written again.
    assert max(record["step"] for record in records(folder)) in range(4, 8)
    with warnings.catch_warnings():
        # A save that was under way when the run was killed is said to be partial.
        warnings.filterwarnings("ignore", ".*is partial.*")
        again = killed.run(folder)
    assert (folder / ".lock").read_text() == ""
    assert equal(again.state, whole.state)
    assert equal(again.params(), whole.params())
    assert records(folder) == records(tmp_path / "whole")
