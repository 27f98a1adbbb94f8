"""Where parameters live, on meshes of devices that need not be there."""

import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from distilljax import networks
from distilljax.training import placement
from distilljax.training.config import FrozenConfig, RoleConfig, TrainConfig
from distilljax.training.placement import Rule, make_mesh, placed, tree_shardings
from distilljax.training.roles import make_setup
from distilljax.training.state import state_shapes, state_shardings
from tests import toy
from tests.training import small


def mesh_of(data=1, fsdp=1, tensor=1):
    return AbstractMesh(
        (data, fsdp, tensor), placement.AXES, axis_types=(AxisType.Auto,) * 3
    )


FOUR = mesh_of(2, 4)
ALL = mesh_of(2, 2, 2)


def spec(mesh, path, shape, rules=None):
    found = tuple(placed(mesh, path, shape, rules).spec)
    return found + (None,) * (len(shape) - len(found))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((64, 32), ("fsdp", None)),
        ((32, 64), (None, "fsdp")),
        # Of two equal ones the last.
        ((32, 32), (None, "fsdp")),
        # Axes before the last two are stacks of layers, or windows.
        ((128, 32, 64), (None, None, "fsdp")),
        ((3, 3, 64, 30), (None, None, "fsdp", None)),
        # What the mesh does not divide is taken whole.
        ((62, 32), (None, "fsdp")),
        ((62, 30), (None, None)),
        # Small ones, vectors and numbers.
        ((31, 32), (None, None)),
        ((4096,), (None,)),
        ((), ()),
    ],
)
def test_without_rules_the_longest_of_the_last_two_axes_is_split(shape, wanted):
    assert spec(FOUR, "any", shape) == wanted
    assert spec(mesh_of(8), "any", shape) == (None,) * len(shape)


def shapes_of(network):
    return jax.eval_shape(network.init, jax.random.key(0))


def by_path(mesh, tree, rules=None):
    flat = jax.tree_util.tree_leaves_with_path(tree_shardings(mesh, tree, rules))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.spec)
        for path, leaf in flat
    }


def test_products_of_the_transformer_are_split_in_pairs():
    network = networks.dit((8, 8, 4), width=64, depth=3, heads=2, num_classes=3)
    tensor = mesh_of(1, 1, 2)
    found = by_path(tensor, shapes_of(network))
    split = {path: axes for path, axes in found.items() if any(axes)}
    stack = (None,)
    assert split == {
        "blocks/qkv/kernel": (*stack, None, "tensor"),
        "blocks/qkv/bias": (*stack, "tensor"),
        "blocks/up/kernel": (*stack, None, "tensor"),
        "blocks/up/bias": (*stack, "tensor"),
        "blocks/out/kernel": (*stack, "tensor", None),
        "blocks/down/kernel": (*stack, "tensor", None),
    }
    both = by_path(ALL, shapes_of(network))
    assert both["blocks/qkv/kernel"] == (None, "fsdp", "tensor")
    assert both["blocks/down/kernel"] == (None, "tensor", "fsdp")
    assert both["blocks/modulation/linear/kernel"] == (None, None, "fsdp")
    assert all("fsdp" not in axes[:1] for axes in both.values() if len(axes) == 3)


def test_products_of_the_mlp_are_split_in_pairs():
    network = networks.mlp((2,), width=32, hidden=64, blocks=1, embedding=16)
    found = by_path(mesh_of(1, 1, 2), shapes_of(network))
    assert {path: axes for path, axes in found.items() if any(axes)} == {
        "block_0/up/kernel": (None, "tensor"),
        "block_0/up/bias": ("tensor",),
        "block_0/down/kernel": ("tensor", None),
    }


def test_default_rules_yield_where_they_do_not_fit():
    assert spec(mesh_of(1, 1, 4), "up/kernel", (32, 30)) == (None, None)
    assert spec(mesh_of(1, 2, 4), "up/kernel", (64, 30)) == ("fsdp", None)
    assert spec(ALL, "qkv/kernel", (8,)) == (None,)


def test_the_first_rule_that_matches_decides():
    rules = (Rule("kernel$", ("fsdp", "tensor")), Rule("qkv", (None, "fsdp")))
    assert spec(ALL, "qkv/kernel", (4, 6), rules) == ("fsdp", "tensor")
    assert spec(ALL, "qkv/other", (4, 6), rules) == (None, "fsdp")
    assert spec(ALL, "qkv/kernel", (3, 4, 6), rules) == (None, "fsdp", "tensor")
    # Given rules are all there is: no default places the others.
    assert spec(ALL, "up/bias", (64,), rules) == (None,)
    assert spec(ALL, "free", (64, 64), ()) == (None, None)


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (Rule("w", ("fsdp",)), (6,)),
        (Rule("w", (None, "fsdp", None)), (8, 8)),
        (Rule("w", ("data", "fsdp")), (3, 8)),
    ],
)
def test_a_given_rule_that_does_not_fit_is_an_error(rule, shape):
    with pytest.raises(ValueError, match=r"rule \('w'.*parameter 'a/w' of shape"):
        placed(FOUR, "a/w", shape, (rule,))


@pytest.mark.parametrize("section", [RoleConfig, FrozenConfig])
def test_rules_are_checked_where_they_are_written(section):
    with pytest.raises(ValueError, match=r"unknown mesh axis 'fsd'.*fsdp"):
        section(rules=(("w", ("fsd",)),))
    for wrong in (("w",), ("w", "fsdp"), "w", (1, ("fsdp",))):
        with pytest.raises(ValueError, match=r"a rule is \[path, "):
            section(rules=(wrong,))
    assert section().placement is None
    assert section(rules=()).placement == ()
    assert section(rules=[["w", ["fsdp", None]]]).placement == (
        Rule("w", ("fsdp", None)),
    )


def test_rules_travel_as_json():
    values = {
        "mesh": {"data": 2, "fsdp": 4},
        "frozen": {"dtype": "bfloat16", "rules": [["kernel$", ["fsdp", None]]]},
        "default": {"rules": [["w$", [None, "fsdp"]]]},
        "student": {"lr": 1e-3},
        "critic": {"rules": []},
    }
    config = TrainConfig.of(values)
    assert config.role("student").placement == (Rule("w$", (None, "fsdp")),)
    assert config.role("critic").placement == ()
    assert config.frozen.placement == (Rule("kernel$", ("fsdp", None)),)
    assert (config.devices, config.rows) == (8, 8)
    again = TrainConfig.of(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert again.frozen.placement == config.frozen.placement
    assert TrainConfig(mesh={"fsdp": 2, "tensor": 4}).rows == 2
    with pytest.raises(ValueError, match="unknown dtype 'float16'.*bfloat16"):
        FrozenConfig(dtype="float16")
    with pytest.raises(ValueError, match="unknown mesh axis 'model'"):
        TrainConfig(mesh={"model": 2})


def test_a_mesh_has_all_axes():
    assert dict(make_mesh({}).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert make_mesh({"fsdp": 1}).axis_types == (AxisType.Auto,) * 3
    with pytest.raises(ValueError, match=r"asks for 12 devices and there are"):
        make_mesh({"data": 3, "fsdp": 4}, jax.devices()[:1])
    assert placement.rows(ALL) == 4


def setup_on(mesh, optimizer, rules=None):
    network = toy.mlp((2,), hidden=64)
    role = {"optimizer": optimizer, "betas": (0.9, 0.99), "ema": 0.9, "rules": rules}
    config = TrainConfig.of({"batch_size": 8, "student": role})
    method = small.following(decay=0.9)
    return make_setup(method, {"backbone": network}, config, (2,), mesh)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd"])
@pytest.mark.parametrize("rules", [None, [["mid/w$", ["fsdp", None]]]])
def test_all_that_has_a_parameters_shape_lives_where_it_does(optimizer, rules):
    setup = setup_on(FOUR, optimizer, rules)
    places, shapes = state_shardings(setup), state_shapes(setup)
    assert places is not None
    own = by_path_of(places.params["student"])
    assert own["mid/w"] == (("fsdp", None) if rules else (None, "fsdp"))
    assert sum(any(axes) for axes in own.values()) == 1
    assert by_path_of(places.params["target"]) == own
    assert by_path_of(places.ema["student"]) == own
    mirrors = 0
    for (path, place), leaf in zip(
        jax.tree_util.tree_leaves_with_path(places.opt["student"]),
        jax.tree.leaves(shapes.opt["student"]),
        strict=True,
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        match = next((own[k] for k in own if name.endswith(k)), None)
        assert tuple(place.spec) == ((None,) * leaf.ndim if match is None else match)
        mirrors += match is not None and any(match)
    assert mirrors == {"adam": 2, "adamw": 2, "muon": 1, "sgd": 1}[optimizer]
    assert not any(places.step.spec)


def by_path_of(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_a_rule_of_a_role_does_not_fit():
    with pytest.raises(ValueError, match="does not fit parameter 'in/b'"):
        state_shardings(setup_on(FOUR, "adam", [["b$", ["fsdp", None]]]))


def pretend(monkeypatch, shape, process, each):
    """A mesh of devices of several processes, seen by one of them."""
    sizes = tuple(shape.get(axis, 1) for axis in placement.AXES)
    count = int(np.prod(sizes))
    parts = count // int(np.prod(sizes[2:]))
    numbers = np.arange(count).reshape(parts, -1)
    mine = [d for d in range(count) if d // each == process]
    found = {
        device: (slice(int(row), int(row) + 1),)
        for row, line in enumerate(numbers)
        for device in line
        if device in mine
    }
    kind = types.SimpleNamespace(addressable_devices_indices_map=lambda shape: found)
    monkeypatch.setattr(placement, "sharding", lambda mesh, *axes: kind)
    monkeypatch.setattr(jax, "process_count", lambda: count // each)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    return mesh_of(*sizes)


@pytest.mark.parametrize(
    ("shape", "each", "wanted"),
    [
        ({"data": 8}, 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ({"data": 2, "fsdp": 4}, 4, [(0, 2), (1, 2)]),
        # Two processes split a product: they hold the same rows.
        ({"data": 2, "tensor": 4}, 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ({"tensor": 4}, 2, [(0, 1), (0, 1)]),
    ],
)
def test_processes_read_their_part_of_a_batch(monkeypatch, shape, each, wanted):
    found = []
    for process in range(len(wanted)):
        mesh = pretend(monkeypatch, shape, process, each)
        found.append(placement.share(mesh))
    assert found == wanted


def test_rows_that_are_no_part_are_refused(monkeypatch):
    mesh = pretend(monkeypatch, {"data": 6}, 1, 2)
    uneven = {0: (slice(0, 1),), 1: (slice(3, 4),)}
    kind = types.SimpleNamespace(addressable_devices_indices_map=lambda shape: uneven)
    monkeypatch.setattr(placement, "sharding", lambda mesh, *axes: kind)
    with pytest.raises(ValueError, match="holds the parts"):
        placement.share(mesh)


def test_one_process_reads_everything():
    assert placement.share(None) == placement.share(make_mesh({})) == (0, 1)
