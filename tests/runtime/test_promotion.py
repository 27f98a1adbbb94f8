"""Training and sampling in a process that asks for strict promotion."""

import jax
import numpy as np
import pytest

import distilljax
from distilljax import data, methods, networks, promotion

SIZES = {"width": 8, "hidden": 8, "blocks": 1, "embedding": 8}
CONFIG = {"cycles": 2, "batch_size": 8, "student": {"ema": 0.9, "clip": 1.0}}
NAMES = {
    "scm": {"learned_weight": False, "tangent": None},
    "mean_flow": {},
    "dmd2": {"gan_weight": 0.0},
}


@pytest.fixture
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def teacher():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        return trained("flow_matching")


def trained(method, **given):
    source = data.mixture("grid", components=4, std=0.1)
    two = "second_time" in given.pop("needs", ())
    own, one = (
        networks.mlp((2,), num_classes=4, second_time=second, **SIZES)
        for second in (two, False)
    )
    return distilljax.fit(
        method,
        networks={"backbone": own, "teacher": one},
        source=source,
        config=CONFIG,
        progress=False,
        **given,
    )


@pytest.mark.parametrize("name", NAMES)
def test_strict_promotion_is_left_to_the_code_that_asks_for_it(name, teacher, strict):
    method = methods.build(name, **NAMES[name])
    needs = {need for role in method.roles.values() for need in role.needs}
    given = {"teacher": teacher} if method.taught else {}
    student = trained(method, needs=needs, **given)
    assert np.isfinite(distilljax.sample(student, steps=2, count=4)).all()
    # What the process asked for holds again.
    assert jax.config.jax_numpy_rank_promotion == "raise"
    assert jax.config.jax_numpy_dtype_promotion == "strict"


def test_where_nothing_is_asked_for_nothing_changes():
    before = jax.config.jax_numpy_rank_promotion
    with promotion.usual():
        assert jax.config.jax_numpy_rank_promotion == before == "allow"
