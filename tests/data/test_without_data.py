"""Methods without data train from labels or embeddings alone."""

import jax
import numpy as np
import pytest

import distilljax
from distilljax import data, methods, networks
from distilljax.training.checks import check_source
from tests import toy


def test_labels_come_once_an_epoch():
    source = data.labels(5, (4, 4, 3))
    assert (source.sample_shape, source.num_classes) == ((4, 4, 3), 5)
    assert source.fields == ("cond",)
    it = data.batches(source, batch_size=10)
    assert next(it)["cond"].dtype == np.int32
    assert sorted(next(it)["cond"].reshape(-1)) == sorted([*range(5)] * 2)
    it.close()
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        data.labels(0, (2,))


def test_the_shape_belongs_to_the_identity():
    assert data.labels(5, (2,)) == data.labels(5, (2,))
    assert data.labels(5, (2,)) != data.labels(5, (3,))


def test_conditions_are_those_of_the_file(tmp_path):
    cond = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    np.savez(tmp_path / "prompts.npz", cond=cond)
    source = data.conditions(tmp_path / "prompts.npz", sample_shape=(2,))
    assert (source.num_classes, source.cond_features, len(source)) == (None, 3, 7)
    np.testing.assert_array_equal(source.take(np.array([6, 0]))["cond"], cond[[6, 0]])
    with pytest.raises(ValueError, match=r"cond must be floats \[N, 4\]"):
        data.conditions(tmp_path / "prompts.npz", sample_shape=(2,), cond_features=4)
    np.save(tmp_path / "prompts.npy", cond)
    assert data.conditions(tmp_path / "prompts.npy", sample_shape=(2,)) == source
    np.savez(tmp_path / "wrong.npz", x0=cond)
    with pytest.raises(ValueError, match=r"must hold 'cond', it has \['x0'\]"):
        data.conditions(tmp_path / "wrong.npz", sample_shape=(2,))
    with pytest.raises(ValueError, match="no data at .*: write cond"):
        data.conditions(tmp_path / "none.npz", sample_shape=(2,))


def test_exactly_the_methods_without_fields_accept_labels():
    """Every registered method either says that it needs no field, or is refused."""
    source, free = data.labels(3, (2,)), set()
    for name in methods.CATALOGUE:
        method = methods.build(name)
        if method.batch:
            with pytest.raises(ValueError, match="needs data fields"):
                check_source(method, source)
        else:
            check_source(method, source)
            free.add(name)
    assert {"sid", "diff_instruct", "tdm", "dmd"} <= free


@pytest.mark.parametrize(
    ("method", "features"),
    [
        (methods.build("diff_instruct"), None),
        pytest.param(methods.build("sid"), None, marks=pytest.mark.full),
        pytest.param(methods.build("tdm", steps=(2,)), None, marks=pytest.mark.full),
        pytest.param(
            methods.build("dmd2", gan_weight=0, critic_steps=1),
            3,
            marks=pytest.mark.full,
        ),
    ],
    ids=["diff_instruct", "sid", "tdm", "dmd2"],
)
def test_it_trains_without_samples(tmp_path, method, features):
    if features is None:
        source, network = data.labels(4, (2,)), toy.mlp(num_classes=4)
    else:
        np.savez(tmp_path / "a.npz", cond=np.eye(5, features, dtype=np.float32))
        source = data.conditions(tmp_path / "a.npz", sample_shape=(2,))
        network = networks.mlp(
            (2,), cond_features=features, width=8, hidden=8, blocks=1, embedding=8
        )
    teacher = network.init(jax.random.key(0))
    config = {"cycles": 2, "batch_size": 8}
    found = distilljax.fit(
        method,
        networks=network,
        source=source,
        teacher=teacher,
        config=config,
        progress=False,
    )
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), found.params, teacher)
    assert 0.0 < max(jax.tree.leaves(moved)) < 1.0
    assert found.sample_shape == (2,)
