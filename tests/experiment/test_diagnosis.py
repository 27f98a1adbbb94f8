"""What is logged about samples while a method trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import api, generation, paths
from distilljax.core.binding import Bound
from distilljax.data import arrays
from distilljax.experiment.diagnosis import BANK, LEVELS, Diagnosis
from distilljax.methods import build
from distilljax.training.config import TrainConfig
from distilljax.training.results import View
from distilljax.training.roles import make_setup
from distilljax.training.state import create_frozen, create_state
from distilljax.training.writers import read_metrics
from tests import toy
from tests.methods import cases

CLASSES = 2


def source(shape=(2,), size=64):
    rng = np.random.default_rng(0)
    label = np.arange(size) % CLASSES
    x0 = rng.normal(size=(size, *shape)) + 2.0 * label.reshape(-1, *[1] * len(shape))
    return arrays(x0.astype(np.float32), label, num_classes=CLASSES, images=False)


def networks(shape=(2,)):
    backbone = toy.mlp(shape, second_time=True, num_classes=CLASSES)
    return {"backbone": backbone}


def view_of(method, nets, shape=(2,), step=1, **params):
    config = TrainConfig.of({"cycles": 4, "batch_size": 8}, roles=method.roles)
    setup = make_setup(method, nets, config, shape)
    given = {"teacher": nets["backbone"].init(jax.random.key(0))}
    state = create_state(setup, given)
    state = state._replace(params={**state.params, **params})
    return View(step, state, create_frozen(setup, given), setup)


OF_SAMPLES = ("frechet", "drift_mean", "drift_std", "diversity", "collapsed")


def test_a_run_logs_its_diagnosis(tmp_path):
    nets = networks()
    api.fit(
        build("diff_instruct"),
        networks=nets,
        source=source(),
        teacher=nets["backbone"].init(jax.random.key(0)),
        config={"cycles": 6, "batch_size": 8, "diagnose_every": 2},
        folder=tmp_path,
        progress=False,
    )
    found = read_metrics(tmp_path / "metrics.jsonl")
    for name in OF_SAMPLES:
        assert found[f"diagnose/{name}"][0] == [2, 4, 6]
    # The critic is compared from the second look on.
    steps, lags = found["diagnose/critic_lag"]
    assert steps == [4, 6]
    assert all(0.9 < lag < 1.1 for lag in lags)


def test_samples_of_the_data_are_well_and_others_are_not():
    method, nets, data = build("diff_instruct"), networks(), source()
    look = Diagnosis(method, nets, data)
    own = np.asarray(data.take(np.arange(64))["x0"])[np.arange(BANK) % 64]
    look._draw = lambda *_: jnp.asarray(own)
    view = view_of(method, nets)
    found = look(view)
    assert found["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert found["drift_mean"] == pytest.approx(0.0, abs=1e-6)
    assert found["diversity"] == pytest.approx(1.0, rel=1e-6)
    assert found["collapsed"] == 0.0
    assert "critic_lag" not in found
    # The same samples again: the critic sees no difference.
    assert look(view)["critic_lag"] == pytest.approx(1.0, abs=1e-5)
    # One sample for each class, though the classes differ.
    means = np.stack([own[np.arange(BANK) % 2 == c].mean(0) for c in range(2)])
    rng = np.random.default_rng(1)
    flat = means[np.arange(BANK) % 2] + 0.01 * rng.normal(size=own.shape)
    look._draw = lambda *_: jnp.asarray(flat, jnp.float32)
    with pytest.warns(UserWarning, match=r"one class differ by 0\.0.*collap"):
        found = look(view)
    assert found["collapsed"] == 1.0
    assert found["diversity"] < 0.05
    look._draw = lambda *_: jnp.asarray(3.0 * own + 5.0)
    found = look(view)
    assert found["drift_mean"] > 1.0
    assert found["drift_std"] == pytest.approx(np.log(3.0), rel=1e-4)
    assert found["critic_lag"] > 1.5
    look._draw = lambda *_: jnp.full_like(own, jnp.nan)
    assert look(view) == {"finite": 0.0}


@pytest.mark.parametrize("name", ["scm", "mean_flow"])
def test_tangents_are_those_of_the_flow_map(name):
    options = {"tangent": None, "learned_weight": False} if name == "scm" else {}
    method, nets = build(name, **options), networks()
    look = Diagnosis(method, nets, source())
    view = view_of(method, nets)
    found = look(view)
    assert "critic_lag" not in found
    path = look.path
    t = path.time_of_angle(LEVELS[2] * path.angle(jnp.float32(path.t_max)))
    x0, cond = look._data["x0"], look._data["cond"]
    x = path.noise(x0, look._eps, t)
    field = Bound("teacher", nets["backbone"], view.params("teacher")).velocity(
        cond, path=path
    )
    v = field(x, t)
    f = generation.student_map(method, nets["backbone"], view.params(), cond)
    h = 1e-3
    ahead, back = (f(x + d * v, t + d, jnp.float32(0.0)) for d in (h, -h))
    norms = np.sqrt(np.mean(((ahead - back) / (2 * h)) ** 2, axis=1))
    wanted = np.percentile(norms, 50, method="higher")
    assert found["tangent_p50/0.5"] == pytest.approx(wanted, rel=0.02)
    assert found["tangent_p95/0.5"] >= found["tangent_p50/0.5"]
    assert len([k for k in found if k.startswith("tangent")]) == 2 * len(LEVELS)


@pytest.mark.parametrize("name", ["scm", "diff_instruct"])
def test_further_looks_compile_nothing(name):
    method, nets = build(name), networks()
    nets["log_weight"] = cases.log_weight()
    traced, apply = [], nets["backbone"].apply

    def counting(*args, **kwargs):
        traced.append(args)
        return apply(*args, **kwargs)

    nets["backbone"] = dataclasses.replace(nets["backbone"], apply=counting)
    look = Diagnosis(method, nets, source())
    view = view_of(method, nets)
    look(view)
    look(view)
    count = len(traced)
    assert count > 0
    look(view)
    assert len(traced) == count


def test_large_samples_are_projected_and_sources_without_data_are_left():
    shape = (16, 16, 1)
    method, nets = build("diff_instruct"), networks(shape)
    look = Diagnosis(method, nets, source(shape))
    found = look(view_of(method, nets, shape))
    assert np.isfinite([found[name] for name in OF_SAMPLES]).all()
    assert look._features(np.zeros((3, *shape))).shape == (3, 128)

    class Labels:
        name, sample_shape, num_classes = "labels", (2,), CLASSES
        fields, fingerprint = ("cond",), "labels"

        def __len__(self):
            return 10

        def __getitem__(self, index):
            return {"cond": np.int32(index % CLASSES)}

    nets = networks()
    look = Diagnosis(method, nets, Labels())
    view = view_of(method, nets)
    assert look(view) == {}
    assert set(look(view)) == {"critic_lag"}


def test_the_path_of_a_trigflow_student_is_its_own():
    method = build("scm")
    look = Diagnosis(method, networks(), source())
    assert look.path.t_max == pytest.approx(paths.trigflow().t_max)
