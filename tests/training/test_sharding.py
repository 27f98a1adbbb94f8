import json
import os
import subprocess
import sys

import pytest

from distilljax.training.config import TrainConfig
from distilljax.training.roles import run_mesh


@pytest.fixture(scope="module")
def results():
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.eight_devices"],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["data_free", "accumulated"])
def test_eight_devices_share_the_work_and_agree(results, name):
    found = results[name]
    assert found["devices"] == 8
    assert found["replicated"]
    assert found["params"] < 2e-5
    assert found["metrics"] < 1e-3
    assert found["flops"] <= 0.2


def test_gradients_are_summed_over_devices_once_an_update(results):
    """Whether a network is applied once, three times, or to four microbatches."""
    for found in results["summed"]:
        # Beside the gradient there are the values of the terms.
        assert 0 <= found["once"] + found["looped"] - found["gradient"] <= 64
    assert results["summed"][2]["looped"] <= 64


def test_a_run_on_eight_devices_resumes_exactly(results):
    assert results["resumed"] == 0.0


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match="4096 devices.*there are"):
        run_mesh(TrainConfig(mesh={"data": 4096}))
