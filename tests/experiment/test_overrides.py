"""Every value of a card can be written in a shell, None included."""

import pytest
from ml_collections import ConfigDict

from distilljax import cards
from distilljax.experiment.overrides import override

CARD = cards.card(
    "flow_matching",
    {"law": "LogitNormal(0.0, 1.0)"},
    source={"name": "mixture", "layout": "grid", "components": 4, "std": 0.1},
    networks={"backbone": {"name": "mlp", "width": 16}},
    cycles=2,
    student={"lr": 1e-3, "ema": 0.9},
)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("student.clip", "1.0", 1.0),
        ("student.ema", "None", None),
        ("student.ema", "0.5", 0.5),
        ("student.lr", "1e-4", 1e-4),
        ("student.lr", "1", 1),
        ("student.betas", "(0.9, 0.95)", [0.9, 0.95]),
        ("student.betas", "[0.9, 0.95]", [0.9, 0.95]),
        ("student.schedule.steps", "100", 100),
        (
            "student.rules",
            "[['kernel$', ['fsdp', None]]]",
            [["kernel$", ["fsdp", None]]],
        ),
        ("checkpoint.best", "fid", "fid"),
        ("checkpoint.keep_period", "500", 500),
        ("mesh.data", "8", 8),
        ("cycles", "7", 7),
        ("method.law", "LogNormal(-1.0, 1.4)", "LogNormal(-1.0, 1.4)"),
        ("source.components", "9", 9),
        ("teacher", "runs/1", "runs/1"),
    ],
)
def test_a_value_reaches_the_experiment(key, text, value):
    found = override(CARD, {key: text})
    node = found
    for part in key.split("."):
        node = node[part]
    assert (list(node) if isinstance(node, tuple) else node) == value
    cards.expand(found)
    assert found.is_locked
    assert CARD.student.ema == 0.9


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("student.lrr", "1.0", "Did you mean 'student.lr'"),
        (
            "student.lr",
            "fast",
            "lr=fast does not fit the card, which holds 0.001",
        ),
        ("cycles", "many", "cycles=many does not fit the card"),
        # A literal that Python itself refuses.
        ("cycles", "{[]: 1}", "cycles={.*: 1} does not fit the card"),
        ("student.betas", "0.9", "student.betas=0.9 does not fit"),
    ],
)
def test_what_does_not_fit_is_named(key, text, said):
    with pytest.raises(ValueError, match=said):
        override(CARD, {key: text})


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("student.lr", "None", "lr must be a finite number, got None"),
        ("student.clip", "hard", "clip must be a finite number, got 'hard'"),
        ("cycles", "2.5", "cycles must be a whole number"),
        ("student.ema", "1e999", "ema must be a finite number"),
    ],
)
def test_a_value_of_another_type_is_named_by_the_config(key, text, said):
    with pytest.raises(ValueError, match=said):
        cards.expand(override(CARD, {key: text}))


def test_flags_and_sections(tmp_path):
    config = ConfigDict({"a": {"on": True, "inner": {"x": 1}}})
    assert override(config, {"a.on": "false"}).a.on is False
    assert override(config, {"a.on": "1"}).a.on is True
    assert override(config, {"a.inner": "{'x': 2}"}).a.inner.x == 2
    assert override(config, {"a.inner": "{'x': 2}", "a.inner.x": "3"}).a.inner.x == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'method': {'name': 'flow_matching'}}", "a card needs 'source'"),
        ("pass", "must return a card, as cards.card.* got NoneType"),
    ],
)
def test_a_file_that_returns_no_card_is_named(tmp_path, body, said):
    path = tmp_path / "card.py"
    path.write_text(f"def get_config():\n    {body}\n")
    with pytest.raises(ValueError, match=said):
        cards.expand(cards.load(path))
