"""Frozen roles held in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.training import build_cycle, create_frozen, create_state, train
from distilljax.training.digests import fingerprint
from tests.training import small
from tests.training.test_state import TEACHER, distilling, setup_of

HALF = {"frozen": {"dtype": "bfloat16"}}


def held(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def one(**config):
    setup = setup_of(small.critic_and_student(1), batch_size=64, **config)
    given = {"teacher": TEACHER}
    return setup, create_state(setup, given), create_frozen(setup, given)


def test_a_frozen_teacher_takes_half_and_a_student_starts_from_all_of_it():
    _, state, frozen = one(**HALF)
    assert held(frozen) * 2 == held(TEACHER)
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.bfloat16.dtype}
    for role in ("student", "fake"):
        jax.tree.map(np.testing.assert_array_equal, state.params[role], TEACHER)
    # A mantissa of 8 bits has lost something, or the test says nothing.
    lost = np.asarray(frozen["teacher"]["mid"]["w"], np.float32) != np.asarray(
        TEACHER["mid"]["w"]
    )
    assert lost.mean() > 0.5


def test_roles_that_start_frozen_from_a_teacher_are_held_alike():
    setup = setup_of(distilling(), **HALF)
    assert jax.tree.leaves(create_frozen(setup, {"teacher": TEACHER}))[0].dtype == (
        jnp.bfloat16
    )


def test_an_update_stays_close():
    results = []
    for config in ({}, HALF):
        setup, state, frozen = one(
            default={"optimizer": "sgd", "lr": 0.1, "betas": (0.0, 0.9)}, **config
        )
        batch = next(small.Stream(1, 1, 64))
        state, metrics = build_cycle(setup, setup.method.phases)(state, frozen, batch)
        moved = jax.tree.map(jnp.subtract, state.params["student"], TEACHER)
        assert jax.tree.leaves(moved)[0].dtype == jnp.float32
        results.append(jnp.concatenate([m.ravel() for m in jax.tree.leaves(moved)]))
    gap = jnp.linalg.norm(results[1] - results[0]) / jnp.linalg.norm(results[0])
    assert 0.0 < gap < 0.1


def test_a_run_resumes_exactly_and_knows_its_teacher(tmp_path):
    def go(cycles, folder=None):
        config = {"batch_size": 32, "cycles": cycles, "student": {"lr": 1e-2}, **HALF}
        return train(
            distilling(), {"backbone": small.NETWORK}, {"teacher": TEACHER},
            small.Stream(size=32), config, folder, progress=False,
        )  # fmt: skip

    for cycles in (2, 4):
        part = go(cycles, tmp_path)
    whole = go(4)
    jax.tree.map(np.testing.assert_array_equal, part.state.params, whole.state.params)
    setup = setup_of(distilling(), **HALF)
    first, again = (
        fingerprint(create_frozen(setup, {"teacher": TEACHER})) for _ in range(2)
    )
    assert first == again
    full = fingerprint(create_frozen(setup_of(distilling()), {"teacher": TEACHER}))
    assert first != full
