"""TensorBoard read back from its event files; W&B through a stand-in of its package."""

import importlib
import struct
import sys
import types

import numpy as np
import pytest

from distilljax.training import Hooks, TrainConfig, loggers, train
from distilljax.training.config import LOGGERS
from tests.training import small
from tests.training.test_cycle import NETWORKS
from tests.training.test_loop import source

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def events(folder):
    """The events of a folder, in the order of their files."""
    from tensorboardX.proto.event_pb2 import Event

    out = []
    for path in sorted(folder.glob("events.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            out.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return out


def scalars(folder):
    """``[(step, name, value)]`` as TensorBoard shows them."""
    out = []
    for event in events(folder):
        if event.HasField("session_log"):
            out = [row for row in out if row[0] < event.step]
        for value in event.summary.value:
            if value.HasField("simple_value"):
                out.append((event.step, value.tag, value.simple_value))
    return out


class Wandb(types.ModuleType):
    """A stand-in that keeps what it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.logged, self.finished = [], [], 0

    def init(self, **arguments):
        self.inits.append(arguments)
        return self

    def log(self, values, step):
        assert not self.logged or step >= self.logged[-1][0] or len(self.inits) > 1
        self.logged.append((step, dict(values)))

    def finish(self):
        self.finished += 1

    def Image(self, image):
        return ("image", image.shape)


@pytest.fixture
def wandb(monkeypatch):
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return stand_in


def test_tensorboard(tmp_path):
    writer = loggers.TensorBoard(tmp_path, 0, {})
    writer.write(1, {"student/loss": 0.5, "skipped/student": 0})
    writer.write(2, {"student/loss": np.float32(0.25)})
    writer.images(2, {"samples": IMAGE})
    writer.close()
    again = loggers.TensorBoard(tmp_path, 1, {})
    again.write(2, {"student/loss": 0.125})
    again.close()
    folder = tmp_path / "tensorboard"
    assert scalars(folder) == [
        (1, "student/loss", 0.5),
        (1, "skipped/student", 0.0),
        (2, "student/loss", 0.125),
    ]
    images = [
        value for e in events(folder) for value in e.summary.value if value.image.height
    ]
    assert [(v.tag, v.image.height, v.image.width) for v in images] == [
        ("samples", 2, 4)
    ]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name):
    """Imported when a run opens it: the module itself loads without the packages."""
    for package in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    module = importlib.reload(loggers)
    with pytest.raises(ModuleNotFoundError, match=rf"distilljax\[{name}\]"):
        module.OPENERS[name](tmp_path, 0, {})
    args = (small.regression(), NETWORKS, None, source())
    config = {"cycles": 1, "batch_size": 8, "logging": name}
    with pytest.raises(ModuleNotFoundError, match=f"leave {name} out of logging"):
        train(*args, config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_fault_inside_a_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("import a_part_that_is_missing")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_part_that_is_missing"):
        loggers.WandB(tmp_path, 0, {})


def test_names_of_loggers_are_checked():
    assert TrainConfig.of({"logging": "wandb, tensorboard"}).loggers == (
        "wandb",
        "tensorboard",
    )
    with pytest.raises(ValueError, match="Did you mean 'tensorboard'"):
        TrainConfig.of({"logging": "tensorbord"})
    with pytest.raises(ValueError, match="logging must be text"):
        TrainConfig.of({"logging": ["wandb"]})


def test_a_run_logs_everywhere_and_continues_there(tmp_path, wandb):
    """Three loggers get the same records; a second call goes on in the same places."""
    config = {
        "cycles": 4,
        "batch_size": 32,
        "log_every": 2,
        "logging": "tensorboard,wandb",
        "sample_every": 3,
        "evaluate_every": 3,
        "student": {"lr": 1e-2},
    }
    hooks = Hooks(lambda view: {"samples": IMAGE}, lambda view: {"score": view.step})
    args = (small.regression(), NETWORKS, None, source())
    train(*args, config, tmp_path, hooks=hooks, progress=False)
    longer = {**config, "cycles": 6}
    train(*args, longer, tmp_path, hooks=hooks, progress=False)

    from distilljax.training import read_metrics

    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows["student/loss"][0] == [1, 2, 4, 6]
    shown = scalars(tmp_path / "tensorboard")
    for name, (steps, values) in rows.items():
        at = [(s, v) for s, n, v in shown if n == name]
        assert [s for s, _ in at] == steps
        np.testing.assert_allclose([v for _, v in at], values, rtol=1e-6)
        logged = [(s, v[name]) for s, v in wandb.logged if name in v]
        assert [s for s, _ in logged] == steps
        np.testing.assert_allclose([v for _, v in logged], values)
    assert [s for s, v in wandb.logged if "samples" in v] == [3, 6]
    first, second = wandb.inits
    assert first["id"] == second["id"] == (tmp_path / "wandb_id").read_text()
    assert first["resume"] == "allow"
    assert first["project"] == "distilljax"
    assert first["name"] == tmp_path.name
    assert first["config"]["train"]["cycles"] == 4
    assert first["config"]["method"] == "regression"
    assert wandb.finished == 2
