"""Two processes train as one does: each reads its own columns of the same batches."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest


def started(count, folder):
    """So many processes with two devices in all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = f"--xla_force_host_platform_device_count={2 // count}"
    flags = f"{devices} {os.environ.get('XLA_FLAGS', '')}"
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.processes"]
            + [str(value) for value in (index, count, port, folder)],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def results(processes):
    found = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-4000:]
        lines = [x for x in out.split("\n") if x.startswith("RESULT")]
        found.append(json.loads(lines[0].removeprefix("RESULT")))
    return found


@pytest.mark.full
def test_two_processes_train_as_one(tmp_path):
    (one,) = results(started(1, tmp_path / "one"))
    two = results(started(2, tmp_path / "two"))
    assert one["read"] == 8
    for found in two:
        assert found["read"] == 4
        assert found["step"] == 4
        np.testing.assert_allclose(found["params"], one["params"], rtol=1e-5, atol=1e-6)
    assert two[0]["params"] == two[1]["params"]
    assert (tmp_path / "two" / "params" / "student.npz").is_file()
