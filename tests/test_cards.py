"""Experiment cards: every file of configs/ expands, and says what it costs."""

import ast
import copy
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import cards
from distilljax.binding import Bound
from distilljax.times import EvenGrid, LogNormal, Ramp

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def small(method="scm", options=None, **changes):
    """A card whose networks and data are tiny."""
    values = {
        "source": {"name": "mixture", "size": 64},
        "networks": {"backbone": {"name": "mlp", "width": 8, "hidden": 8, "blocks": 1}},
        "cycles": 3,
        "batch_size": 8,
        **changes,
    }
    plain = {"learned_weight": False} if method == "scm" else {}
    return cards.card(method, plain if options is None else options, **values)


def expanded(config):
    """A card's objects; files of data are not there."""
    in_file = not {"path", "dataset"}.isdisjoint(config["source"])
    return cards.expand(config, source=cards.outline(config) if in_file else None)


def test_there_are_cards():
    assert len(FILES) >= 5


@functools.cache
def read(path):
    """``(card, objects)`` of a file; the tests only look at them."""
    config = cards.load(path)
    return config, expanded(config)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_card_expands(path):
    config, found = read(path)
    assert found.method.name == config.method.name
    assert set(found.train.roles) == set(found.method.trained)
    for role in found.method.roles.values():
        assert role.network in found.networks
    # Plain values: the record of a run holds them as JSON and reads them back.
    again = expanded(found.config)
    assert again.train == found.train
    assert again.source == found.source


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_card_says_command_hardware_cost_and_result(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text is not None
    command = re.search(r"distilljax train --config=(\S+)(.*)", text)
    assert command is not None
    assert ROOT / command.group(1) == path
    for word in ("Hardware: ", "Cost: ", "Expected: ", "Reproduces: "):
        assert word in text, word
    roles = read(path)[1].method.roles
    teacher = "teacher" in roles or any(r.init == "teacher" for r in roles.values())
    assert ("--teacher=" in command.group(2)) == teacher


def test_a_card_holds_every_default_that_text_can_say():
    config = small(student={"lr": 3e-4})
    assert config.student.lr == 3e-4
    assert config.student.optimizer == "adam"
    assert config.method.warmup == repr(Ramp(10_000))
    assert config.method.law == repr(LogNormal(-1.0, 1.4))
    assert config.networks.backbone.width == 8
    assert config.networks.backbone.embedding == 128
    assert config.networks.backbone.name == "mlp"
    assert config.source.components == 8
    with pytest.raises(AttributeError, match="lrr.* does not exist"):
        config.student.lrr = 1.0


@pytest.mark.parametrize("kind", ["cifar", "latent", "imagenet64"])
def test_a_card_names_its_source_after_a_colon(kind):
    path = ROOT / "configs" / kind / "scm.py"
    config = cards.load(f"{path}:records")
    assert config.source.name == "records"
    plain = cards.load(path)
    assert plain.source.name == ("tfds" if kind == "imagenet64" else "npz")
    assert cards.outline(config) == cards.outline(plain)
    assert (
        expanded(config).networks["backbone"].num_classes == config.source.num_classes
    )
    with pytest.raises(ValueError, match="source of the .* cards 'record'.*'records'"):
        cards.load(f"{path}:record")
    with pytest.raises(ValueError, match="has one card alone: leave ':tfds' out"):
        cards.load(f"{ROOT / 'configs' / 'digits' / 'scm.py'}:tfds")


def test_networks_take_embeddings_from_the_source(tmp_path):
    np.savez(tmp_path / "prompts.npz", cond=np.ones((6, 5), np.float32))
    section = {"name": "conditions", "path": str(tmp_path / "prompts.npz")}
    tiny = {"name": "mlp", "width": 8, "hidden": 8, "blocks": 2}
    config = small(
        "dmd2",
        {"gan_weight": 0.1},
        source={**section, "sample_shape": (2,), "cond_features": 5},
        networks={"backbone": tiny, "discriminator": {"name": "head"}},
    )
    for found in (cards.expand(config), expanded(config)):
        net, head = found.networks["backbone"], found.networks["discriminator"]
        x, cond = jnp.zeros((3, 2)), jnp.ones((3, 5))
        out, taps = net.apply(net.init(jax.random.key(0)), x, 0.5, cond, taps=True)
        assert out.shape == (3, 2)
        judge = Bound("discriminator", head, head.init(jax.random.key(0)))
        assert judge.call("logits", taps, 0.5, cond).shape == (3,)


def test_overrides_reach_the_objects():
    config = small()
    config.student.lr = 0.5
    config.method.warmup = "Ramp(7)"
    config.method.sampling_grid = "EvenGrid(0.9)"
    config.networks.backbone.width = 16
    config.source.components = 3
    found = cards.expand(config)
    assert found.train.role("student").lr == 0.5
    assert found.method.sampling.grid == EvenGrid(0.9)
    assert found.source.num_classes == 3
    assert found.networks["backbone"].num_classes == 3


def test_networks_take_shape_and_classes_from_the_source():
    found = cards.expand(
        small(
            "dmd2",
            {"gan_weight": 0.1},
            networks={
                "backbone": {"name": "mlp", "width": 8, "hidden": 8, "blocks": 2},
                "discriminator": {"name": "head"},
            },
        )
    )
    assert found.networks["backbone"].num_classes == 8
    assert set(found.method.trained) == {"student", "fake_score", "discriminator"}


def test_a_card_chooses_the_kind_of_its_heads():
    backbone = {"name": "mlp", "width": 8, "hidden": 8, "blocks": 2}
    head = {"name": "head", "kind": "patches", "product": True, "width": 8}
    config = small("ladd", networks={"backbone": backbone, "discriminator": head})
    found = cards.expand(config).networks["discriminator"]
    params = found.init(jax.random.key(0))
    taps = (jnp.ones((4, 8)), jnp.ones((4, 8)))
    logits = found.functions["logits"](params, taps, 0.5, jnp.zeros(4, jnp.int32))
    assert logits.shape == (4, 2)
    config.networks.discriminator.kind = "patch"
    with pytest.raises(ValueError, match="unknown kind of head 'patch'"):
        cards.expand(config)


def test_a_card_gives_a_student_that_is_told_scales_its_input():
    options = {"guidance": "Among((2.0, 3.0, 4.0))", "embed": True}
    config = cards.digits_card("lcm", options)
    assert tuple(config.networks.student.guidance) == (0.1, 1000.0, 128)
    found = cards.expand(config)
    assert found.method.sampling.guidance == 3.0
    for role, on in (("student", True), ("target", True), ("backbone", False)):
        assert ("guidance" in found.networks[role].capabilities) == on


def test_the_section_of_a_role_that_an_option_took_out_says_nothing():
    config = cards.load(ROOT / "configs" / "digits" / "dmd2.py")
    assert config.discriminator.betas[0] == 0.5
    config.method.gan_weight = 0.0
    found = cards.expand(config)
    assert set(found.method.trained) == {"student", "fake_score"}
    assert "discriminator" not in found.train.roles


CHANGES = [
    ({"method": {"name": "scmm"}}, r"unknown method 'scmm'.*Did you mean 'scm'"),
    ({"method": {"guidence": 2.0}}, "option of method 'scm' 'guidence'.*'guidance'"),
    (
        {"source": {"name": "digts"}},
        "unknown source 'digts'.*'digits'.*Known: coloured_digits, conditions",
    ),
    ({"source": {"sizes": 3}}, "argument of source 'mixture' 'sizes'.*'size'"),
    ({"networks": {"backbone": {"name": "mpl"}}}, "unknown network 'mpl'.*'mlp'"),
    ({"networks": {"backbone": {"widht": 3}}}, "network 'mlp' 'widht'.*'width'"),
    ({"student": {"lrr": 1.0}}, "config key in 'student' 'lrr'.*'lr'"),
    ({"cycle": 3}, "config key or role 'cycle'.*'cycles'"),
    ({"studnet": {"lr": 1.0}}, "config key or role 'studnet'.*'student'"),
    ({"fake_score": {"lr": 1.0}}, "card sets role 'fake_score'.*does not have"),
    ({"method": {"law": "LogNormall(1)"}}, "Did you mean 'LogNormal'"),
    ({"cycles": 0}, "cycles must be at least 1, got 0"),
]


def merged(plain, change):
    for key, value in change.items():
        if isinstance(value, dict) and key in plain:
            merged(plain[key], value)
        else:
            plain[key] = value
    return plain


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_what_does_not_exist_is_refused_with_near_names(change, message):
    plain = copy.deepcopy(small().to_dict())
    with pytest.raises(ValueError, match=f"(?s){message}"):
        cards.expand(merged(plain, change))


def test_a_section_of_a_role_that_an_option_took_out_may_stay():
    config = small(
        "dmd2",
        {},
        networks={
            "backbone": {"name": "mlp", "width": 8, "hidden": 8, "blocks": 1},
            "discriminator": {"name": "head"},
        },
    )
    assert "discriminator" in config
    config.method.gan_weight = 0.0
    found = cards.expand(config)
    assert "discriminator" not in found.method.roles
    assert "discriminator" not in found.train.roles


@pytest.mark.parametrize("key", ["method", "source", "networks"])
def test_a_card_without_a_section_is_refused(key):
    plain = small().to_dict()
    del plain[key]
    with pytest.raises(ValueError, match=f"a card needs '{key}'"):
        cards.expand(plain)


def test_files_that_are_no_cards_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'scm.py'"):
        cards.load(ROOT / "configs" / "digits" / "scmm.py")
    with pytest.raises(ValueError, match="there is no such file"):
        cards.load(tmp_path / "none.py")
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="defines no get_config"):
        cards.load(path)
