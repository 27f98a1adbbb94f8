"""The front door from Python: fit, sample, load, and what it refuses at the start."""

import json

import chex
import jax
import numpy as np
import pytest

import distilljax
from distilljax import api, cards, networks
from distilljax.core.binding import Network
from distilljax.data import sources
from distilljax.diffusion.times import TableGrid
from distilljax.methods import dmd2, flow_matching, mean_flow, scm
from distilljax.training import loop
from distilljax.training.config import TrainConfig

SHAPE = (4, 4, 1)
SIZES = {"width": 8, "hidden": 8, "blocks": 1, "embedding": 8}
NET = networks.mlp(SHAPE, num_classes=3, **SIZES)
CONFIG = {"cycles": 2, "batch_size": 8}


def pictures(seed=0, count=32):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE))


def _leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def source():
    return sources.arrays(pictures(), np.arange(32) % 3)


def fit(method="flow_matching", **changes):
    given = {"networks": NET, "source": source(), "config": CONFIG, "progress": False}
    return distilljax.fit(method, **{**given, **changes})


@pytest.fixture(scope="module")
def teacher():
    return fit()


@pytest.fixture(scope="module")
def student(teacher):
    method = scm(learned_weight=False)
    return fit(method, teacher=teacher)


def test_fit_needs_no_folder(teacher, student):
    assert teacher.method.name == "flow_matching"
    assert teacher.folder is None
    assert teacher.result.step == 2
    assert teacher.sample_shape == SHAPE
    assert teacher.num_classes == 3
    assert np.isfinite(teacher.result.metrics["student/loss"])
    # The student has left its teacher, whose parameters are as they were.
    same = [
        np.array_equal(a, b)
        for a, b in zip(_leaves(student.params), _leaves(teacher.params))
    ]
    assert not all(same)
    frozen = student.result.frozen["teacher"]
    assert all(map(np.array_equal, _leaves(frozen), _leaves(teacher.params)))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_one_student_is_sampled_at_any_number_of_steps(student, steps):
    x = distilljax.sample(student, steps=steps, labels=[0, 1, 2, 2], progress=False)
    assert x.shape == (4, *SHAPE)
    assert x.dtype == np.float32
    again = distilljax.sample(student, steps=steps, labels=[0, 1, 2, 2], progress=False)
    np.testing.assert_array_equal(x, again)
    other = distilljax.sample(student, steps=steps, labels=[0, 1, 2, 2], seed=1)
    assert not np.allclose(x, other)


def test_a_teacher_may_take_the_first_steps(teacher, student):
    labels = [0, 1, 2]
    led = distilljax.sample(student, steps=3, labels=labels, teacher=teacher)
    assert led.shape == (3, *SHAPE)
    assert np.abs(led - distilljax.sample(student, steps=3, labels=labels)).max() > 1e-3
    more = distilljax.sample(
        student,
        steps=3,
        labels=labels,
        teacher=teacher,
        teacher_nfe=8,
        teacher_guidance=2.0,
    )
    assert np.abs(led - more).max() > 1e-3
    assert api.spent(3) == "NFE 3"
    lead = api.lead_of(student, teacher, 1, 8, 2.0)
    assert api.spent(3, lead) == "NFE 18 (teacher 16, student 2, guidance 2)"
    other = fit(
        source=sources.arrays(pictures()), networks=networks.mlp(SHAPE, **SIZES)
    )
    for options, message in (
        ({"teacher_steps": 2}, "pass teacher="),
        ({"teacher_guidance": 2.0}, "pass teacher="),
        ({"teacher": teacher, "teacher_steps": 3}, "of 3 steps it was given 3"),
        ({"teacher": teacher, "teacher_nfe": 3}, "cannot be spent by Heun"),
        ({"teacher": other}, "num_classes of the student is 3, of the teacher None"),
    ):
        with pytest.raises(ValueError, match=message):
            distilljax.sample(student, steps=3, labels=labels, **options)


def test_without_labels_every_class_comes_in_turn(student, tmp_path):
    out = tmp_path / "inner" / "x.npz"
    x = distilljax.sample(student, count=7, out=out)
    with np.load(out) as found:
        np.testing.assert_array_equal(found["x"], x)
        assert found["label"].dtype == np.int32
        np.testing.assert_array_equal(found["label"], [0, 1, 2, 0, 1, 2, 0])
    assert (tmp_path / "inner" / "x.png").is_file()
    assert sorted(p.name for p in out.parent.iterdir()) == ["x.npz", "x.png"]
    assert len(distilljax.sample(student)) == 30


def test_a_folder_keeps_parameters_grids_metrics_and_config(tmp_path):
    config = {**CONFIG, "sample_every": 1, "student": {"ema": 0.5}}
    found = fit(config=config, folder=tmp_path)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "cycle_000001.png",
        "cycle_000002.png",
    ]
    kept = api.load_params(tmp_path / "params" / "student.npz")
    assert all(map(np.array_equal, _leaves(kept), _leaves(found.params)))
    # What is kept and sampled is the average, not the last parameters.
    last = found.result.params("student", ema=False)
    assert not all(map(np.array_equal, _leaves(kept), _leaves(last)))
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 2
    again = fit(config=config, folder=tmp_path)
    assert all(map(np.array_equal, _leaves(again.params), _leaves(found.params)))
    with pytest.raises(ValueError, match="batch_size: 8 -> 4"):
        fit(config={**config, "batch_size": 4}, folder=tmp_path)
    with pytest.raises(ValueError, match="not started from a card"):
        distilljax.sample(tmp_path)


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run: there is no config.json"):
        distilljax.sample(tmp_path / "nothing")


IMAGES = [
    (pictures() * 3, {}, r"x0: images must lie in \[-1, 1\], got values from -"),
    (pictures()[0], {}, r"x0.*\[N, H, W, C\].*got shape \(4, 4, 1\)"),
    (pictures().reshape(32, 16, 1), {}, r"\(32, 16, 1\)"),
    (np.where(pictures() > 0.9, np.nan, 0.0), {}, "x0 must be finite, got .* NaN"),
    (pictures(count=0), {}, "x0 must hold at least one sample"),
    (pictures(), {"cond": np.full(32, 3), "num_classes": 3}, r"0 \.\. 2, got 3 to 3"),
    (pictures(), {"cond": np.full(32, -1)}, "labels must lie in 0"),
    (pictures(), {"cond": np.zeros(31, int)}, "one row per sample of x0 .32., got 31"),
]


@pytest.mark.parametrize(("x0", "options", "message"), IMAGES)
def test_bad_data_is_refused_where_it_enters(x0, options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sources.arrays(x0, **options)


class Foreign:
    """A source of one's own, which nobody has checked."""

    sample_shape, num_classes, fields = SHAPE, 3, ("x0", "cond")

    def __init__(self, x0=0.0, cond=0, shape=SHAPE, size=32):
        self.row = {"x0": np.full(shape, x0, np.float32), "cond": np.int32(cond)}
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return dict(self.row)


BARE = Network("bare", NET.apply, NET.init)
UNGUIDED = networks.mlp(SHAPE, **SIZES)
TURNED = TableGrid(((0.5, 1.0),))
STARTS = [
    ({"source": Foreign(x0=np.nan)}, "field 'x0' must be finite, got 128 NaN"),
    ({"source": Foreign(cond=3)}, r"labels in 'cond' must lie in 0 \.\. 2.*got 3"),
    ({"source": Foreign(shape=(4, 4))}, r"samples of shape \(4, 4, 1\), got \(4, 4\)"),
    ({"source": Foreign(size=0)}, "at least one sample, got an empty source"),
    ({"source": pictures()}, "must be a data source, got ndarray.*data.arrays"),
    ({"networks": networks.mlp(SHAPE, num_classes=2, **SIZES)}, "data has 3 classes"),
    ({"networks": BARE}, "'bare' does not say on which path.*path=.*prediction="),
    ({"networks": {"backbon": NET}}, "unknown network 'backbone'.*'backbon'"),
    ({"method": "flow_machting"}, "unknown method.*Did you mean 'flow_matching'"),
    ({"config": {"cycle": 3}}, "config key or role 'cycle'.*'cycles'"),
    ({"config": {"studnet": {"lr": 1.0}}}, "'studnet'.*Did you mean 'student'"),
    ({"config": {"student": {"lrr": 1.0}}}, "in 'student' 'lrr'.*'lr'"),
    ({"config": {"cycles": 0}}, "cycles must be at least 1, got 0"),
    ({"config": {"batch_size": 0}}, "batch_size must be at least 1, got 0"),
    (
        {"method": scm(learned_weight=False)},
        r"starts from 'teacher'.*pass params=.'teacher'",
    ),
    ({"method": "scm", "teacher": {}}, "network 'log_weight'"),
    ({"method": mean_flow()}, "'student' needs a network with second_time, and 'mlp'"),
    (
        {"method": flow_matching(label_dropout=0.1), "networks": UNGUIDED},
        "'student' needs a network with null, and 'mlp' has .*null=",
    ),
    (
        {"method": scm(learned_weight=False, guidance=2.0), "networks": UNGUIDED},
        "'teacher' needs a network with null",
    ),
    ({"params": {"techer": {}}}, "params has 'techer', which is no role"),
]


@pytest.mark.parametrize(("change", "message"), STARTS)
def test_bad_input_is_refused_at_the_start(change, message, monkeypatch):
    def never(*args):
        raise AssertionError("a program was built before the input was checked")

    monkeypatch.setattr(loop, "build_cycle", never)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        fit(**change)


def test_a_teacher_of_another_size_is_refused():
    wide = networks.mlp(SHAPE, num_classes=3, **{**SIZES, "width": 16})
    other = fit(networks=wide)
    with pytest.raises(ValueError, match=r"role 'teacher'.*leaf .* shape"):
        fit(scm(learned_weight=False), teacher=other)


def test_a_batch_that_does_not_divide_the_mesh_is_refused(monkeypatch):
    monkeypatch.setattr(loop, "run_mesh", lambda config: None)
    config = TrainConfig.of({"cycles": 2, "batch_size": 10, "mesh": {"data": 4}})
    with pytest.raises(ValueError, match="multiple of .*1 x 4.*got 10"):
        fit(config=config)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="asks for 4096 devices and there are"):
        fit(config={**CONFIG, "batch_size": 4096, "mesh": {"data": 4096}})


def test_times_that_do_not_decrease_are_refused(teacher):
    method = dmd2(steps=(2,), grid=TURNED, gan_weight=0)
    with pytest.raises(ValueError, match="times must decrease strictly"):
        fit(method, teacher=teacher)


def test_bad_calls_of_sample_are_refused(student):
    for options, message in (
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"labels": [0, 3]}, r"labels must lie in 0 \.\. 2, got 0 \.\. 3"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"labels": [0], "count": 2}, "count 2 and 1 labels disagree"),
        ({"labels": [0], "batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            distilljax.sample(student, **options)


class Breaking:
    """A source whose sample 20 cannot be read."""

    name, sample_shape, num_classes = "breaking", SHAPE, 3
    fields, fingerprint, read_threads = ("x0", "cond"), "breaking", 2

    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == 20:
            raise OSError("no such block")
        return source()[index]


def test_an_error_of_the_source_ends_training_with_its_name(tmp_path):
    config = {**CONFIG, "cycles": 10}
    with pytest.raises(ValueError, match="source breaking: sample 20 .*no such block"):
        fit(source=Breaking(), config=config, folder=tmp_path)


def test_a_run_is_loaded_without_its_data(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x0=pictures(), cond=np.arange(32) % 3)
    shape = {"sample_shape": SHAPE, "num_classes": 3}
    card = cards.card(
        "flow_matching",
        source={"name": "npz", "path": str(path), **shape},
        networks={"backbone": {"name": "mlp", **SIZES}},
        **CONFIG,
    )
    found = cards.expand(card)
    given = {"networks": found.networks, "source": found.source, "config": found.train}
    fitted = fit(
        found.method, **given, folder=tmp_path / "a", card={"card": found.config}
    )
    path.unlink()
    loaded = api.load(tmp_path / "a")
    assert (loaded.sample_shape, loaded.num_classes) == (SHAPE, 3)
    wanted = distilljax.sample(fitted, labels=[0, 1])
    np.testing.assert_array_equal(distilljax.sample(loaded, labels=[0, 1]), wanted)


def test_a_card_names_its_teacher(tmp_path):
    backbone = {"name": "mlp", **SIZES}
    common = {
        "source": {"name": "mixture", "size": 16, "components": 2},
        "networks": {"backbone": backbone},
        "cycles": 2,
        "batch_size": 8,
    }
    path = tmp_path / "teacher"
    distilljax.fit_card(
        cards.card("flow_matching", **common), folder=path, progress=False
    )
    student = cards.card("scm", {"learned_weight": False}, teacher=str(path), **common)
    fitted = distilljax.fit_card(student, folder=tmp_path / "scm", progress=False)
    assert distilljax.sample(fitted, count=3, steps=1).shape == (3, 2)
    again = api.load(tmp_path / "scm")
    chex.assert_trees_all_equal(again.params, fitted.params)
    with pytest.raises(ValueError, match="teacher"):
        distilljax.fit_card({**student.to_dict(), "teacher": ""}, progress=False)
    # A method without one leaves the name alone.
    alone = cards.card("flow_matching", teacher=str(tmp_path / "none"), **common)
    assert distilljax.fit_card(alone, progress=False).result.step == 2
