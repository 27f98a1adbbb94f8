"""Faults of disks, data, numbers and people: what is said, and that nothing is lost."""

import contextlib
import json
import os
import resource
import shutil
import signal
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from distilljax.core.method import Term, check
from distilljax.evaluation import save_png
from distilljax.training import (
    Hooks,
    Interrupted,
    make_setup,
    train,
)
from distilljax.training.checkpoints import Checkpoints, _checksum
from distilljax.training.config import CheckpointConfig, TrainConfig
from distilljax.training.export import load_params, save_params
from distilljax.training.lock import Lock
from distilljax.training.state import abstract
from tests.training import small
from tests.training.test_checkpoints import kept, restored, saved
from tests.training.test_cycle import NETWORKS
from tests.training.test_loop import equal, source

CONFIG = {
    "cycles": 6,
    "batch_size": 32,
    "log_every": 1,
    "checkpoint": {"every": 2, "keep": 9},
    "student": {"lr": 1e-2},
}
METHOD = small.regression()


def trained(folder, data=None, method=METHOD, params=None, hooks=Hooks(), **config):
    return train(
        method, NETWORKS, params, source() if data is None else data,
        {**CONFIG, **config}, folder, hooks=hooks, progress=False,
    )  # fmt: skip


def at(cycle, act):
    """Hooks that act after a cycle."""

    def hook(view):
        if view.step == cycle:
            act()

    return {"hooks": Hooks(sample=hook), "sample_every": 1}


@pytest.fixture(scope="module")
def whole():
    """The run without a fault."""
    return trained(None)


def continues(folder, whole, **kwargs):
    """Checks that the same call ends as if nothing had happened."""
    again = trained(folder, **kwargs)
    assert equal(again.state, whole.state)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert (folder / ".lock").read_text() == ""


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    saved(folder)
    return folder


@pytest.fixture
def folder(three, tmp_path):
    """Three checkpoints to damage."""
    return shutil.copytree(three, tmp_path / "run")


def foreign(step):
    """What another library leaves: a step without our items."""
    shutil.rmtree(step)
    with ocp.StandardCheckpointer() as saves:
        saves.save(step, {"w": np.ones(3)})


def cut(pattern, share=0.5):
    def damage(step):
        for path in step.glob(pattern):
            content = path.read_bytes()
            assert content
            path.write_bytes(content[: int(share * len(content))])

    return damage


DAMAGES = {
    "arrays": (cut("state/ocdbt.process_0/d/*"), "."),
    "no arrays": (cut("state/ocdbt.process_0/d/*", 0), "."),
    "array metadata": (cut("state/_METADATA"), "."),
    "manifest": (cut("state/manifest.ocdbt", 0), "."),
    "meta": (cut("meta/metadata"), "JSONDecodeError"),
    "empty data": (cut("data/metadata", 0), "JSONDecodeError"),
    "state missing": (lambda step: shutil.rmtree(step / "state"), '"state" was not'),
    "data missing": (lambda step: shutil.rmtree(step / "data"), '"data" was not'),
    "empty step": (lambda step: shutil.rmtree(step) or step.mkdir(), "not found"),
    "foreign": (foreign, "not found"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(folder, name):
    damage, reason = DAMAGES[name]
    damage(folder / "checkpoints" / "3")
    words = rf"checkpoints/3' is damaged \(.*{reason}.*moved to .*damaged/000-3'"
    with pytest.warns(UserWarning, match=words):
        found = restored(folder)
    assert found.step == int(found.state.step) == 2
    assert kept(folder) == [1, 2]
    assert (folder / "damaged" / "000-3").is_dir()
    assert restored(folder).step == 2


def test_no_checkpoint_that_can_be_read_is_moved_or_replaced(folder):
    for step in (1, 2, 3):
        cut("meta/metadata")(folder / "checkpoints" / str(step))
    words = r"no checkpoint in .* can be read.*3 is damaged.*1 is damaged.*Restore"
    with pytest.raises(ValueError, match=words):
        restored(folder)
    assert kept(folder) == [1, 2, 3]
    assert not (folder / "damaged").exists()


def test_what_is_no_checkpoint_is_left_alone(folder):
    root = folder / "checkpoints"
    (root / "best").mkdir()
    (root / "notes.txt").write_text("mine")
    (root / "8").write_text("a file")
    assert restored(folder).step == 3
    assert (root / "best").is_dir()
    assert (root / "notes.txt").read_text() == "mine"


def meta_of(folder, change):
    """What another version would have written, under its checksum."""
    path = folder / "checkpoints" / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    change(meta)
    data = json.loads((path.parent.parent / "data" / "metadata").read_text())
    path.write_text(json.dumps({**meta, "checksum": _checksum(meta, data)}))


@pytest.mark.parametrize("version", ["9.9", None])
def test_a_checkpoint_of_another_version(folder, version):
    def other(meta):
        del meta["leaves"]
        meta["version"] = version

    meta_of(folder, lambda meta: meta.update(colour="blue", version="9.9"))
    assert restored(folder).meta["colour"] == "blue"
    meta_of(folder, other)
    words = f"checkpoint 3 .* by distilljax {version or 'of an earlier'}.*its leaves.*"
    with pytest.raises(ValueError, match=words + "move it away.*another folder"):
        restored(folder)
    assert kept(folder) == [1, 2, 3]


def test_a_checkpoint_of_another_run(tmp_path):
    """Of the same shapes, put into a run's folder."""
    for name, seed in (("a", 0), ("b", 1)):
        trained(tmp_path / name, cycles=2 + 2 * seed, seed=seed)
    there = tmp_path / "a" / "checkpoints" / "4"
    shutil.copytree(tmp_path / "b" / "checkpoints" / "4", there)
    words = "checkpoint 4 is of another run .*train.seed: 1 -> 0.*move it away"
    with pytest.raises(ValueError, match=words):
        trained(tmp_path / "a")
    assert kept(tmp_path / "a") == [2, 4]
    shutil.rmtree(there)
    assert trained(tmp_path / "a").step == 6


def test_another_method_in_the_folder_is_refused(folder):
    setup = make_setup(METHOD, NETWORKS, TrainConfig(batch_size=8), (2,))
    saves = Checkpoints(folder, CheckpointConfig())
    state = abstract(setup)
    with pytest.raises(ValueError, match="another state.*move it away to use an older"):
        saves.restore(state)
    saves.close()
    assert kept(folder) == [1, 2, 3]


@contextlib.contextmanager
def largest(size):
    """No file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_for_a_checkpoint(tmp_path, whole):
    words = r"could not be saved in .*/checkpoints'.*intact: 2\..*free space.*same call"
    with contextlib.ExitStack() as stack:

        def fill():
            while not (tmp_path / "checkpoints" / "2").is_dir():
                time.sleep(0.01)
            stack.enter_context(largest(3000))

        with pytest.raises(OSError, match=words):
            trained(tmp_path, **at(3, fill))
    with pytest.warns(UserWarning, match="is partial"):
        continues(tmp_path, whole)
    assert kept(tmp_path) == [2, 4, 6]


def descriptors(path):
    """Open file descriptors of a file."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == os.path.realpath(path):
                yield int(name)


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_no_space_for_records(tmp_path, whole, name):
    """The device that is always full takes the place of the file."""

    def fill():
        (number,) = descriptors(tmp_path / name)
        with open("/dev/full", "w") as full:
            os.dup2(full.fileno(), number)

    words = f"No space left.*{name}' could not be written.*free space.*same call"
    with pytest.raises(OSError, match=words):
        trained(tmp_path, **at(3, fill))
    assert kept(tmp_path) == [2]
    continues(tmp_path, whole)


def test_no_space_for_parameters_and_samples(tmp_path):
    old = {"w": np.ones(3, np.float32)}
    path, image = tmp_path / "student.npz", tmp_path / "grid.png"
    save_params(path, old)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    with largest(2000):
        for save in (
            lambda: save_params(path, {"w": np.ones(10000, np.float32)}),
            lambda: save_png(image, noise),
        ):
            with pytest.raises(OSError, match="could not be written.*free space"):
                save()
    assert equal(load_params(path), old)
    assert [p.name for p in tmp_path.iterdir()] == ["student.npz"]
    for share in (0.5, 0.0):
        cut("student.npz", share)(tmp_path)
        with pytest.raises(ValueError, match="student.npz is damaged .*make the call"):
            load_params(path)
        save_params(path, old)


def test_a_second_run_in_the_folder_is_refused(tmp_path, whole):
    lock = Lock(epath.Path(tmp_path))
    with pytest.raises(ValueError, match="in use by process .*choose another folder"):
        trained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    lock.close()

    def second():
        with pytest.raises(ValueError, match="in use by process"):
            trained(tmp_path)

    trained(tmp_path, **at(3, second))
    continues(tmp_path, whole)


def interrupt():
    # In this thread and at once: a signal to the process may come while Python runs a
    # callback whose exceptions it only reports.
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_saves_and_the_same_call_continues(tmp_path, whole, capfd):
    with pytest.raises(Interrupted) as stopped:
        trained(tmp_path, **at(3, interrupt))
    assert stopped.value.code == 130
    assert "SIGINT: saving after this cycle, then ending" in capfd.readouterr().err
    assert kept(tmp_path) == [2, 3]
    continues(tmp_path, whole)


def test_ctrl_c_twice_ends_at_once(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, **at(3, lambda: (interrupt(), interrupt())))
    assert kept(tmp_path) == [2]
    continues(tmp_path, whole)


def test_ctrl_c_while_compiling(tmp_path):
    sent = []

    def fit(ctx):
        # Terms run while the cycle is traced, and this one there alone.
        if not sent:
            sent.append(interrupt())
        return small.velocity_error("student")(ctx)

    method = small.regression()
    phase = method.phases[0]._replace(terms=(Term("fit", fit),))
    method = check(method._replace(phases=(phase,)))
    with pytest.raises(Interrupted):
        trained(tmp_path, method=method)
    assert kept(tmp_path) == [1]
    assert trained(tmp_path, method=method).step == 6


def test_ctrl_c_without_a_folder_ends_at_once():
    seen = []
    # A shell starts what it runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trained(None, **at(3, lambda: seen.append(interrupt())))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == []


def test_a_wall_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """Days forth and back at every look, while checkpoints are saved and removed."""
    whole = trained(None)
    now = time.time

    def jumping(calls=iter(range(10**9))):
        return now() + (-1) ** next(calls) * 86400.0 * 5

    config = {"checkpoint": {"every": 1, "keep": 2}}
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", jumping)
        first = trained(tmp_path, hooks=Hooks(), **config)
        assert equal(first.state, whole.state)
        assert kept(tmp_path) == [5, 6]
        # The newest is the one of the most cycles, whatever its date.
        for step, date in ((5, 4 * 10**9), (6, 1)):
            for path in (tmp_path / "checkpoints" / str(step)).rglob("*"):
                os.utime(path, (date, date))
            os.utime(tmp_path / "checkpoints" / str(step), (date, date))
        again = trained(tmp_path, **config)
    assert equal(again.state, whole.state)
    assert all(0.0 <= found.seconds < 3600.0 for found in (first, again))
