"""The code that the documents show runs."""

import argparse
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import distilljax
from distilljax import cards, data
from distilljax.core.method import Method
from distilljax.data import arrays
from distilljax.experiment.api import Fitted
from distilljax.methods import flow_matching, scm
from distilljax.runtime import words
from distilljax.training.placement import tree_shardings
from tests import toy

ROOT = pathlib.Path(__file__).parent.parent


def blocks(name: str, after: str) -> str:
    """The first Python block after a heading."""
    text = (ROOT / name).read_text()
    text = text[text.index(after) :]
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_readme_loss_gives_gradients():
    code = blocks("README.md", "## A loss in your own JAX code")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    network = toy.mlp(second_time=True)
    keys = jax.random.split(jax.random.key(0), 6)
    space = {
        "net": network.apply and (lambda p, x, t, s: network.apply(p, x, t, None, s)),
        "teacher": network.apply,
        "params": network.init(keys[0]),
        "teacher_params": network.init(keys[1]),
        "x0": jax.random.normal(keys[2], (8, 2)),
        "eps": jax.random.normal(keys[3], (8, 2)),
        "t": jax.random.uniform(keys[4], (8,), minval=0.5),
        "s": jax.random.uniform(keys[5], (8,), maxval=0.5),
    }
    exec(code, space)
    sizes = [float(jnp.abs(g).max()) for g in jax.tree.leaves(space["grads"])]
    assert np.all(np.isfinite(sizes))
    assert max(sizes) > 0


def test_the_worked_method_trains():
    code = blocks("docs/adding_a_method.md", "## The function")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 32
    space = {}
    exec(code, space)
    method = space["ayf_lmd"]()
    assert isinstance(method, Method)
    network = toy.mlp(second_time=True)
    source = arrays(np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype("float32"))
    fitted = distilljax.fit(
        method,
        networks=network,
        source=source,
        teacher=network.init(jax.random.key(0)),
        config={"cycles": 3, "batch_size": 16, "student": {"lr": 1e-3}},
        progress=False,
    )
    assert fitted.result.step == 3
    x = distilljax.sample(fitted, steps=2, count=5)
    assert x.shape == (5, 2)
    assert np.all(np.isfinite(x))


def test_the_edits_of_the_page_run():
    text = (ROOT / "docs" / "editing.md").read_text()
    shape, labels = (8, 8, 3), np.arange(4) % 3
    network = toy.mlp(shape, num_classes=3, hidden=8)
    params = network.init(jax.random.key(0))
    images = np.random.default_rng(0).uniform(-1, 1, (4, *shape)).astype("float32")
    space = {
        "student": Fitted(scm(learned_weight=False), network, params, shape, 3),
        "teacher": Fitted(flow_matching(), network, params, shape, 3),
        "images": images,
        "drawing": images,
        "labels": labels,
    }
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, space)
    for name in [
        "filled",
        "coloured",
        "large",
        "clean",
        "better",
        "between",
        "again",
        "x",
    ]:
        assert space[name].shape == (4, *shape), name
        assert np.all(np.isfinite(space[name])), name
    np.testing.assert_array_equal(space["filled"][:, :4], images[:, :4])
    for picture in re.findall(r"\]\((editing/.*?\.png)\)", text):
        assert (ROOT / "docs" / picture).is_file(), picture


def test_the_evaluation_page_measures(capsys):
    exec(blocks("docs/evaluation.md", "# Evaluation"), {})
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in shown] == ["frechet", "kid", "recall"]
    assert all(np.isfinite(float(line[1])) and line[3] == "200" for line in shown)


def written_files(root):
    """What docs/data.md reads."""
    rng = np.random.default_rng(0)
    (root / "data").mkdir()
    pixels = rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    x0 = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    np.savez(root / "data" / "cifar10.npz", x0=x0, cond=np.arange(8))
    for i, picture in enumerate(pixels):
        path = root / "data" / "images" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    cond = rng.normal(size=(5, 16)).astype(np.float32)
    np.savez(root / "data" / "prompts.npz", cond=cond)
    digits = data.digits().take(np.arange(6))
    made = arrays(digits["x0"], digits["cond"], num_classes=10, eps=digits["x0"])
    data.write_records(made, root / "runs" / "digits" / "pairs")


def test_every_source_of_the_data_page_is_that_of_its_card(tmp_path, monkeypatch):
    written_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "data.md").read_text()
    space, met = {"data": data}, set()
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "data.tfds(" in code:
            # Nothing is downloaded here: tests/data/test_prepared.py reads one.
            call = {"data": argparse.Namespace(tfds=lambda name, **k: (name, k))}
            exec(code, call)
            name, options = call["source"]
            assert call["section"] == {"name": "tfds", "dataset": name, **options}
            assert set(options) <= set(inspect.signature(data.tfds).parameters)
            met.add("tfds")
            continue
        exec(code, space)
        section, source = dict(space["section"]), space["source"]
        met.add(section["name"])
        card = cards.card(
            "flow_matching",
            source=section,
            networks={"backbone": {"name": "mlp", "width": 8}},
        )
        outline = cards.outline(card)
        assert outline.sample_shape == tuple(source.sample_shape)
        found = cards.expand(card).source
        assert found.fingerprint == source.fingerprint
        assert len(found) == len(source) > 0
    assert met == set(words.SOURCES)


def test_the_rules_of_the_page_on_sharding_fit():
    space = {}
    exec(blocks("docs/sharding.md", "## Rules"), space)
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    network = distilljax.networks.dit((8, 8, 4), width=32, depth=2, heads=2)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    config = space["config"]
    for section in (config.role("student"), config.frozen):
        placed = tree_shardings(mesh, shapes, section.placement)
        kernel = placed["blocks"]["qkv"]["kernel"].spec
        assert set(kernel) >= {"fsdp"}
