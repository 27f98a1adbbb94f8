"""Pairs over 8 devices, and float64 in a process of float32."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from distilljax.evaluation.statistics import pairs


def test_eight_devices_share_the_rows_and_agree():
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.statistics.eight_devices"],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert len(found["far"]) == 9
    for name, far in found["far"].items():
        assert far < 1e-11, name
    assert found["features"] < 1e-5
    assert found["flops"] < 0.2


def _sum(squared, index, shared):
    return squared.sum(1), index


def test_the_process_stays_in_float32():
    assert jax.numpy.ones(1).dtype == np.float32
    x = 1e3 + np.random.default_rng(0).normal(size=(11, 3))
    total, index = pairs.over_rows(_sum, x, x)
    assert total.dtype == np.float64
    expected = ((x[:, None] - x[None]) ** 2).sum((1, 2))
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    np.testing.assert_array_equal(index, np.arange(11))
    assert jax.numpy.ones(1).dtype == np.float32


def test_more_rows_than_a_block_may_hold(monkeypatch):
    monkeypatch.setattr(pairs, "_BLOCK_ELEMENTS", 24)
    x, y = np.arange(10.0)[:, None], np.arange(8.0)[:, None]
    total, index = pairs.over_rows(_sum, x, y)
    np.testing.assert_allclose(total, ((x - y.T) ** 2).sum(1), rtol=1e-12)
    np.testing.assert_array_equal(index, np.arange(10))


@pytest.mark.parametrize("many", [1797, 20_000])
def test_a_block_fits_the_cache_of_a_processor_or_has_rows_for_a_product(many):
    x, y = np.zeros((5000, 1)), np.zeros((many, 1))
    _, _, block, padded, *_ = pairs.prepare(_sum, x, y, (), None)
    assert block >= 64
    assert block == 64 or 8 * block * many <= 2**20
    assert len(padded) < len(x) + block


def test_devices_of_other_processes_are_refused():
    class Elsewhere:
        process_index = 1

    class Mesh:
        devices = np.array([Elsewhere()])

    with pytest.raises(ValueError, match=r"got 1 of others among 1; make one of jax"):
        pairs.row_mesh(Mesh())
