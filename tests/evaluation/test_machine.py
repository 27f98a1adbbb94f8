"""What a run ran on."""

import json
import platform

import jax
import numpy as np

from distilljax.evaluation.machine import hardware, versions


def test_hardware_names_processor_and_devices():
    found = hardware()
    assert found["cpu_count"] >= 1
    assert found["cpu_model"]
    assert found["memory_gib"] is None or found["memory_gib"] > 0.1
    assert found["jax_backend"] == jax.default_backend()
    assert sum(found["jax_devices"].values()) == jax.device_count()
    json.dumps(found, allow_nan=False)


def test_versions_name_what_is_installed():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["jax"] == jax.__version__
    assert found["numpy"] == np.__version__
    assert "scikit-learn" in found
