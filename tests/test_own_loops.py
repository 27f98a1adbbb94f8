"""Training loops of one's own, in ``examples/``: what they say that they reach."""

import importlib
import math
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
NAMES = ("mean_flow", "scm", "dmd2")


@pytest.fixture
def loop(request, monkeypatch):
    """The module of an example."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module(f"own_loop_{request.param}")
    for name in [name for name in sys.modules if name.startswith("own_loop")]:
        del sys.modules[name]


def distances(module, params, count, steps):
    """Distance to exact samples at each number of steps, and the floor."""
    shared = importlib.import_module("own_loops")
    eps = jax.random.normal(jax.random.key(3), (count, 2))
    found = [shared.judged(module.sample(params, eps, n)) for n in steps]
    return [own for own, _ in found], found[0][1]


@pytest.mark.parametrize("loop", NAMES, indirect=True)
def test_a_loop_comes_nearer_in_a_few_cycles(loop):
    times = 2 if "mean_flow" in loop.__name__ else 1
    start = loop.init(jax.random.key(0), times)
    before, floor = distances(loop, start, 512, [1])
    after, _ = distances(loop, loop.fit(200, 64), 512, [1])
    assert floor < after[0] < 0.9 * before[0]


@pytest.mark.full
@pytest.mark.parametrize("loop", NAMES, indirect=True)
def test_a_loop_reaches_what_it_says(loop):
    said = re.findall(r"(\d\.\d+)\sat (\d) step", loop.__doc__)
    numbers = [int(steps) for _, steps in said]
    assert numbers == ([1, 2] if "dmd2" in loop.__name__ else [1, 2, 4])
    found, floor = distances(loop, loop.fit(), 8192, numbers)
    wanted = np.array([float(value) for value, _ in said])
    # Other machines round otherwise, and a run is chaotic.
    np.testing.assert_array_less(found, 1.5 * wanted)
    stated = re.search(r"floor (\d\.\d+)", loop.__doc__)
    assert stated is not None
    assert math.isclose(floor, float(stated.group(1)), rel_tol=0.05)
