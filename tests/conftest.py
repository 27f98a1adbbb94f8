"""Fixtures shared by the whole suite."""

import jax
import pytest


@pytest.fixture(scope="module")
def x64():
    """Float64 for one module: ``pytestmark = pytest.mark.usefixtures("x64")``."""
    with jax.enable_x64(True):
        yield
