"""Cheap compilation for the whole suite, and shared fixtures.

The programs here are small and many, so that compiling them costs more than running
them: XLA optimises little, and equal programs are compiled once for all workers and
subprocesses of a run.
"""

import atexit
import os
import shutil
import tempfile

if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    # Together they compile the cycle of dmd2 in 0.6 of the time of the first alone.
    cheap = (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_opt_preset=fast_compile",
        "--xla_cpu_use_fusion_emitters=false",
    )
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *cheap])
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Workers and subprocesses inherit it; the process that made it removes it.
    folder = tempfile.mkdtemp(prefix="distilljax_tests_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import bucket as buckets  # noqa: E402
from tests import dear  # noqa: E402


def pytest_addoption(parser):
    dear.addoption(parser)


def pytest_configure(config):
    dear.configure(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    dear.mark(config, items, dear.read())


@pytest.fixture(scope="module")
def x64():
    """Float64 for one module: ``pytestmark = pytest.mark.usefixtures("x64")``."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def bucket():
    """Path of an empty bucket in memory."""
    buckets.install()
    return "gs://bucket"
