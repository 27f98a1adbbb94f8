"""The digits, and a small report, for the tests of this folder."""

import numpy as np
import pytest
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def digits():
    """Images ``[1797, 8, 8, 1]`` in [-1, 1] and their labels."""
    data = load_digits()
    x = (data.data / 8 - 1).astype(np.float32).reshape(-1, 8, 8, 1)
    return x, data.target.astype(np.int32)


def row(**changes):
    base = {
        "frechet": 0.3,
        "frechet_std": 0.01,
        "mmd": 0.002,
        "accuracy": 0.9996,
        "precision": 0.98,
        "recall": 0.7,
        "copied": 0.0004,
        "copied_expected": 0.0011,
        "copied_limit": 0.007,
        "copies": False,
    }
    return base | changes


@pytest.fixture
def report():
    students = [
        row(
            method=method,
            nfe=nfe,
            frechet=frechet,
            train_seconds=41.0,
            network_evaluations=1_380_000,
        )
        for method, values in {"scm": (0.3, 0.24), "dmd2": (0.34, 0.22)}.items()
        for nfe, frechet in zip((1, 4), values, strict=True)
    ]
    return {
        "title": "Digits <& test>",
        "seconds": {"total": 100.0, "teacher": 60.0, "scm": 20.0},
        "hardware": {"cpu_model": "a & b", "jax_devices": {"cpu": 1}},
        "versions": {"python": "3.11.7"},
        "teacher": row(nfe=50, frechet=0.2),
        "students": students,
        "protocol": {"samples": 1797, "clipping": "[-1, 1]"},
    }


@pytest.fixture
def grids():
    rng = np.random.default_rng(0)
    names = ("data", "teacher_nfe50", "scm_nfe1", "scm_nfe4", "dmd2_nfe1", "dmd2_nfe4")
    return {n: rng.uniform(-1, 1, (20, 8, 8, 1)).astype(np.float32) for n in names}


@pytest.fixture
def curves():
    steps = list(range(0, 100, 5))
    loss = [1.0 / (1 + step) for step in steps]
    proxy = {"frechet_step": [50, 100], "frechet": [1.0, 0.3]}
    return {
        "teacher": {"step": steps, "loss": loss},
        "scm": {"step": steps, "loss": loss, **proxy},
        "dmd2": {"step": steps, "loss": [-v for v in loss], **proxy},
    }
