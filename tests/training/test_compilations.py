"""How many programs a run compiles: few, a small one costs a tenth of a second."""

import jax
import numpy as np
import pytest

from benchmarks import measure
from distilljax import data
from distilljax.core.method import Stage
from distilljax.training import train
from tests.methods import cases

# Up to the end of the first cycle, its checkpoint included.
LIMIT = 5


def source():
    rng = np.random.default_rng(0)
    x0 = rng.normal(size=(64, *cases.SHAPE)).astype(np.float32)
    return data.arrays(x0, rng.integers(0, cases.CLASSES, 64))


def programs(built, folder, cycles=1, **config):
    """Names of the programs of a run, of which nothing is compiled already."""
    nets = cases.networks()
    given = jax.tree.map(np.asarray, cases.params(nets, built))
    settings = {"cycles": cycles, "batch_size": 16, "student": {"ema": 0.9}, **config}
    with measure.compilations() as names:
        train(built, nets, given, source(), settings, folder, progress=False)
    return names


@pytest.mark.parametrize("config", [{}, {"frozen": {"dtype": "bfloat16"}}])
def test_a_first_cycle_and_one_that_is_continued(tmp_path, config):
    built = cases.method("scm")
    names = programs(built, tmp_path, **config)
    assert sum("run_cycle" in name for name in names) == 1
    assert len(names) <= LIMIT, names
    again = programs(built, tmp_path, cycles=2, **config)
    assert sum("run_cycle" in name for name in again) == 1
    assert len(again) <= LIMIT, again


def test_several_roles_and_a_second_stage_add_no_small_programs(tmp_path):
    built = cases.method("dmd2")
    staged = built._replace(stages=(Stage(1, built.phases[-1:]),))
    names = programs(staged, tmp_path, cycles=2, checkpoint={"every": 1})
    assert sum("run_cycle" in name for name in names) == 2
    assert len(names) <= LIMIT + 1, names
