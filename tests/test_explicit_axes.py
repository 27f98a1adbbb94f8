"""The mathematics runs under meshes of explicit axes, and keeps the batch split."""

import json
import os
import subprocess
import sys

import pytest

# They make no arrays of their own; `exact` stands for both derivatives.
NO_ARRAYS = ["divergence_of", "finite_difference"]


@pytest.fixture(scope="module")
def found():
    flags = os.environ["XLA_FLAGS"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.explicit_axes"],
        env={
            **os.environ,
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
            "PJRT_NPROC": "32",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_loss_is_there(found):
    assert found["kinds"] == ["Explicit"]
    assert found["missing"] == NO_ARRAYS


def test_values_and_gradients_are_those_of_one_device(found):
    assert {n: gap for n, gap in found["gaps"].items() if gap > 1e-5} == {}
    assert {n: gap for n, gap in found["gradients"].items() if gap > 1e-4} == {}
    assert {n: gap for n, gap in found["laws"].items() if gap > 0.0} == {}


def test_outputs_stay_split_along_the_batch(found):
    assert {name: types for name, types in found["lost"].items() if types} == {}
