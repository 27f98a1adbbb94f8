"""Parameters come back from their files as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.training.export import load_params, save_params

TREES = {
    "plain": {"block": {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}},
    "bfloat16": {"w": jnp.arange(3, dtype=jnp.bfloat16), "b": jnp.ones(2)},
    "float8": {"w": jnp.ones(3, jnp.float8_e4m3fn)},
    "lists": {"blocks": [{"w": jnp.ones(2)}, {"w": jnp.zeros(2)}]},
    "numbers": {"blocks": {0: jnp.ones(2), 10: jnp.zeros(2)}},
    "both": [jnp.ones(2), {1: jnp.zeros(1), "1": jnp.ones(1)}],
    "slashes": {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}},
    "tuples": ({"w": (jnp.ones(2), jnp.zeros(1))},),
    "holes": {"layers": [jnp.ones(2), None, {}, (), [], jnp.zeros(2)], "rest": {}},
    "names of numpy's arguments": {"file": jnp.ones(2), "allow_pickle": jnp.zeros(1)},
    "names that a zip cuts": {"a\0b": jnp.ones(2), "a\0c": jnp.zeros(2)},
    "leaf": jnp.ones(2),
    "nothing": {},
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_comes_back(tmp_path, name):
    tree = TREES[name]
    if name == "both":
        tree = {"list": tree[0], "keys": {1: tree[1][1], 2: tree[1]["1"]}}
    path = save_params(tmp_path / "p.npz", tree)
    found = load_params(path)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(
            np.asarray(a, np.float32), np.asarray(b, np.float32)
        )


def test_a_type_that_nobody_noted_is_refused(tmp_path):
    np.savez(tmp_path / "p.npz", w=np.ones(3, np.dtype("V2")))
    with pytest.raises(ValueError, match="'w' has a type"):
        load_params(tmp_path / "p.npz")


def test_keys_that_a_file_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rename it"):
        save_params(tmp_path / "p.npz", {(1, 2): jnp.ones(1)})


def test_a_random_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\['key'\] is a random key"):
        save_params(tmp_path / "p.npz", {"key": jax.random.key(0)})


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.ones(2), "a/b": np.ones(2)},
        {"a/b": np.ones(2), "a": np.ones(2)},
        {"__tree__": np.frombuffer(b"{nothing", np.uint8)},
        {"__tree__": np.frombuffer(b"[1]", np.uint8), "a": np.ones(2)},
        {
            "__tree__": np.frombuffer(b'{"types": {"a": "none"}}', np.uint8),
            "a": np.ones(2),
        },
    ],
)
def test_a_file_that_is_none_of_ours_is_named(tmp_path, arrays):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(ValueError, match="p.npz holds no parameters"):
        load_params(tmp_path / "p.npz")
