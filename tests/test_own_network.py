"""Networks of one's own, the page about them, and runs that are loaded again."""

import dataclasses
import importlib.util
import pathlib
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import distilljax
from distilljax import api, cards, cli, data, methods, networks, paths
from distilljax.training.checkpoints import Checkpoints

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "your_own_network.md"
TINY = {"name": "mlp", "width": 8, "hidden": 8, "blocks": 1, "embedding": 8}
SOURCE = {"name": "mixture", "size": 32, "components": 3}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the page defines, its code run in its order and in small."""
    scope = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            if "equinox" in code and importlib.util.find_spec("equinox") is None:
                # Its call convention is tested below, with a pytree that is no module.
                continue
            exec(code.replace('"cycles": 200', '"cycles": 3'), scope)
    return scope


def test_the_page_trains_samples_and_loads(page):
    assert page["same"].shape == (3, 2)
    assert page["again"].cycle is None
    assert page["again"].class_names == ("east", "north", "south")
    assert page["x"].shape == (3, 2)
    assert np.isfinite(page["x"]).all()


@pytest.mark.parametrize("name", ["net", "by_nnx", "by_linen"])
def test_every_kind_of_the_page_trains_and_comes_back(page, name, tmp_path):
    check_trains(page[name], tmp_path, told=name == "net")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A layer as equinox has them: a pytree that is called."""

    weight: jax.Array
    bias: jax.Array
    count: int = dataclasses.field(metadata={"static": True}, default=0)

    def __call__(self, h):
        return h @ self.weight + self.bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tree:
    """A callable pytree with a leaf that is no parameter."""

    layers: list
    table: np.ndarray

    def __call__(self, x, t, cond=None):
        h = jnp.concatenate([x, t[:, None]], -1)
        for layer in self.layers[:-1]:
            h = jax.nn.silu(layer(h))
        return self.layers[-1](h) * self.table[0]


def tree():
    keys = jax.random.split(jax.random.key(0))
    wide = [(3, 8), (8, 2)]
    layers = [
        Layer(jax.random.normal(key, shape), jnp.zeros(shape[1]))
        for key, shape in zip(keys, wide, strict=True)
    ]
    return Tree(layers, np.arange(1, 3))


def test_a_callable_pytree_is_a_network(tmp_path):
    module = tree()
    net = networks.functionalize(module, path=paths.linear(), prediction="velocity")
    params = net.init(jax.random.key(1))
    assert set(params["layers"]) == {"0", "1"}
    assert "table" not in params
    x, t = jnp.ones((2, 2)), jnp.full(2, 0.5)
    np.testing.assert_array_equal(net.apply(params, x, t), module(x, t))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    assert (net.apply(doubled, x, t) != net.apply(params, x, t)).any()
    with pytest.raises(ValueError, match="missing .*layers/1/weight"):
        net.apply({"layers": {"0": params["layers"]["0"]}}, x, t)
    check_trains(net, tmp_path, told=False)


def check_trains(net, folder, *, told):
    source = data.mixture(size=16, components=3)
    # A network that does not read the labels of the data is trained without them.
    ignored = {} if told else {"ignore_cond": True}
    config = {**ignored, "cycles": 2, "batch_size": 4, "student": {"ema": 0.5}}
    given = {"networks": net, "source": source}
    fitted = distilljax.fit(
        "flow_matching", **given, config=config, folder=folder, progress=False
    )
    method = methods.build("flow_matching")
    again = distilljax.load(folder, method=method, **given)
    chex.assert_trees_all_equal(again.params, fitted.params)
    with pytest.raises(ValueError, match="not started from a card.*method=, networks="):
        distilljax.load(folder)
    with pytest.raises(ValueError, match="of method 'flow_matching', got 'sid'"):
        distilljax.load(folder, method=methods.sid(), **given)


def card(method="flow_matching", options=None, backbone=TINY, **changes):
    values = {"cycles": 4, "batch_size": 4, "checkpoint": {"every": 2}, **changes}
    return cards.card(
        method, options, source=SOURCE, networks={"backbone": backbone}, **values
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished teacher, and the same run as it was after two of four cycles."""
    root = tmp_path_factory.mktemp("runs")
    average = {"student": {"ema": 0.5, "lr": 0.1}}
    half = card(**average, cycles=2)
    distilljax.fit_card(half, folder=root / "half", progress=False)
    distilljax.fit_card(card(**average), folder=root / "whole", progress=False)
    shutil.copytree(root / "whole", root / "cut")
    shutil.rmtree(root / "cut" / "params")
    shutil.rmtree(root / "cut" / "checkpoints" / "4")
    return root


def test_an_unfinished_run_is_sampled_from_its_newest_checkpoint(runs, capsys):
    before = sorted(p.relative_to(runs) for p in runs.rglob("*"))
    found = distilljax.load(runs / "cut")
    said = capsys.readouterr().err
    assert f"{runs / 'cut'}: not finished" in said
    assert "cycle 2 of 4" in said
    assert found.cycle == 2
    # What a run that ended there left: its averages.
    ended = distilljax.load(runs / "half")
    assert (ended.cycle, capsys.readouterr().err) == (None, "")
    chex.assert_trees_all_equal(found.params, ended.params)
    assert sorted(p.relative_to(runs) for p in runs.rglob("*")) == before
    assert cli.main(["sample", f"--run={runs / 'cut'}", "--count=3"]) == 0
    assert "cycle 2 of 4" in capsys.readouterr().err
    shutil.rmtree(runs / "cut" / "samples")
    with pytest.raises(ValueError, match="not finished.*cycle 2: train that run"):
        distilljax.fit_card(card("sid"), teacher=found, progress=False)


def test_a_damaged_newest_checkpoint_is_named_and_an_older_one_used(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "whole", folder)
    shutil.rmtree(folder / "params")
    saves = Checkpoints.to_read(folder)
    assert saves.saved == [2, 4]
    (folder / "checkpoints" / "4" / "meta" / "metadata").write_text("{")
    with pytest.warns(UserWarning, match="checkpoint 4 .* is damaged.*cycle 2 is used"):
        assert distilljax.load(folder).cycle == 2
    assert saves.saved == [2, 4]
    (folder / "checkpoints" / "2" / "meta" / "metadata").write_text("{")
    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        distilljax.load(folder)


def test_adapters_of_an_unfinished_run_stand_on_their_teacher(runs, tmp_path):
    lora = {"roles": ("student",), "rank": 2}
    section = {"student_lora": {"lr": 0.1}, "lora": lora}
    teacher = str(runs / "whole")
    ended = card("reflow", teacher=teacher, cycles=2, **section)
    distilljax.fit_card(ended, folder=tmp_path / "a", progress=False)
    longer = card("reflow", teacher=teacher, **section)
    distilljax.fit_card(longer, folder=tmp_path / "b", progress=False)
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "4")
    found, wanted = (distilljax.load(tmp_path / n) for n in "ba")
    assert (found.cycle, wanted.cycle) == (2, None)
    chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-6)


def test_the_teacher_is_applied_by_the_network_of_its_run(runs):
    found = distilljax.load(runs / "whole")
    other = {**TINY, "prediction": "x0"}
    own = networks.mlp((2,), num_classes=3, width=8, hidden=8, blocks=1, embedding=8)
    seen = []

    def apply(*args, **kwargs):
        seen.append(args)
        return found.network.apply(*args, **kwargs)

    watched = dataclasses.replace(
        found, network=dataclasses.replace(found.network, apply=apply)
    )
    config = {"cycles": 1, "batch_size": 4}
    common = {"source": data.mixture(size=8, components=3), "config": config}
    distilljax.fit("sid", networks=own, teacher=watched, **common, progress=False)
    assert seen
    # One that is named stays.
    count = len(seen)
    both = {"backbone": own, "teacher": own}
    distilljax.fit("sid", networks=both, teacher=watched, **common, progress=False)
    assert len(seen) == count
    with pytest.raises(ValueError, match="'student' starts from .*predicts velocity"):
        distilljax.fit_card(card("sid", backbone=other), teacher=found, progress=False)


def test_a_teacher_of_another_architecture_is_described(runs):
    wide = card("sid", backbone={**TINY, "width": 16})
    found = distilljax.load(runs / "whole")
    with pytest.raises(ValueError, match="starts from role 'teacher'") as error:
        distilljax.fit_card(wide, teacher=found, progress=False)
    said = str(error.value)
    for part in (
        "role 'student' starts from role 'teacher'",
        "'mlp' of 0.00",
        "M parameters in ",
        "shape (8,",
        "networks.backbone.width: 8 -> 16",
        "params={'student': ...}",
    ):
        assert part in said, part
    # With parameters of its own it may be another network.
    expanded = cards.expand(wide)
    net = expanded.networks["backbone"]
    start = net.init(jax.random.key(0))
    fitted = distilljax.fit(
        expanded.method,
        networks=expanded.networks,
        source=expanded.source,
        teacher=found,
        params={"student": start, "fake_score": start},
        config={"cycles": 1, "batch_size": 4},
        progress=False,
    )
    assert isinstance(fitted, api.Fitted)


def test_load_is_at_the_top():
    assert distilljax.load is api.load
