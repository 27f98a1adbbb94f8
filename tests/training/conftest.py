"""Cheap compilation: the programs here are small and many."""

import os
import tempfile

import jax
import pytest

# Takes effect unless another test has started the backend already.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()


@pytest.fixture(scope="session", autouse=True)
def compilation_cache():
    """Programs that are equal in two tests are compiled once."""
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        yield
        jax.config.update("jax_compilation_cache_dir", None)
