"""Faults of disks, data, numbers and people: what is said, and that nothing is lost."""

import contextlib
import json
import os
import resource
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from distilljax.data import readers
from distilljax.evaluation import save_png
from distilljax.method import Follow, Out, Phase, Role, Term, check
from distilljax.training import (
    Hooks,
    Interrupted,
    build_cycle,
    create_frozen,
    create_state,
    make_setup,
    train,
)
from distilljax.training.checkpoints import Checkpoints
from distilljax.training.checks import check_setup
from distilljax.training.config import CheckpointConfig, TrainConfig
from distilljax.training.export import load_params, save_params
from distilljax.training.lock import Lock
from distilljax.training.placement import Rule, make_mesh, placed
from distilljax.training.state import abstract
from tests.data.test_readers import Stuck, StuckTake
from tests.training import small
from tests.training.test_checkpoints import kept, restored, saved
from tests.training.test_cycle import NETWORKS, imitating
from tests.training.test_loop import equal, source
from tests.training.test_state import TEACHER

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


# Checkpoint files


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
    path = folder / "checkpoints" / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


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


# Full disk


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


# Two runs in one folder


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


# Numbers that are not finite


def remembering(loss, seen):
    """Imitation with a follower and a memory; faults of either in the second cycle."""

    def fit(ctx):
        second = ctx.step == 1
        last = ctx.memory["last"] + jnp.where(second, seen(ctx), 1.0)
        extra = jnp.where(second, loss(ctx, second), 0.0)
        return Out(small.imitate(ctx) + extra, memory={"last": last})

    method = imitating(Term("fit", fit))
    follower = Role(init="student", follow=Follow("student", decay=0.5))
    return with_memory(method._replace(roles={**method.roles, "target": follower}))


def with_memory(method):
    return check(
        method._replace(memory=lambda batch_size, shape: {"last": jnp.zeros(())})
    )


def states(method, count=3, batches=1):
    """Copies of the state after each cycle, and the metrics."""
    config = {"batch_size": 32, "cycles": 10, "student": {"ema": 0.9, "lr": 1e-2}}
    setup = make_setup(method, NETWORKS, TrainConfig.of(config), (2,))
    given = {"teacher": TEACHER} if "teacher" in method.roles else {}
    state, frozen = create_state(setup, given), create_frozen(setup, given)
    cycle, stream, out = build_cycle(setup, method.phases), small.Stream(batches), []
    for _ in range(count):
        state, metrics = cycle(state, frozen, next(stream))
        out.append((jax.tree.map(jnp.copy, state), jax.device_get(metrics)))
    return out


def kink(ctx, second):
    """A finite number whose gradient is none."""
    w = jnp.sum(ctx.nets.student.params["in"]["w"] ** 2)
    return jnp.sqrt(jnp.where(second, 0.0, 1.0) * w)


def nan_data(ctx, *_):
    return jnp.nan * jnp.sum(ctx.data["x0"])


def fine(ctx, *_):
    return 1.0


FAULTS = {
    "batch": (nan_data, nan_data),
    "gradient": (kink, fine),
    "memory": (fine, nan_data),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_finite_enters_nothing(name):
    """The second cycle changes nothing, except that averages go on towards the rest."""
    (before, _), (after, logs), (later, last) = states(remembering(*FAULTS[name]))
    if name == "gradient":
        assert np.isfinite(logs["student/fit"])
    assert equal(before.params["student"], after.params["student"])
    assert equal(before.opt, after.opt)
    assert float(before.memory["last"]) == float(after.memory["last"]) == 1.0
    for tree in (after.params, after.ema, later.params, later.ema, later.opt):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
    assert int(logs["skipped/student"]) == int(logs["skipped_in_a_row"]) == 1
    assert not equal(later.params["student"], after.params["student"])
    assert float(later.memory["last"]) == 2.0
    assert (int(last["skipped/student"]), int(last["skipped_in_a_row"])) == (1, 0)


def test_what_a_collect_phase_remembers_is_finite():
    def gather(ctx):
        last = ctx.memory["last"] + jnp.where(ctx.step == 1, jnp.nan, 1.0)
        return Out({"pool": ctx.data["x0"]}, memory={"last": last})

    method = METHOD._replace(phases=(Phase("g", (), collect=gather), *METHOD.phases))
    found = states(with_memory(method), batches=2)
    assert [float(state.memory["last"]) for state, _ in found] == [1.0, 1.0, 2.0]
    assert [float(logs["g/memory_skipped"]) for _, logs in found] == [0.0, 1.0, 0.0]


class Bad(small.Stream):
    """Batches that are not finite after some."""

    def __init__(self, good):
        super().__init__()
        self.good = good

    def __next__(self):
        batch = super().__next__()
        factor = np.float32(np.nan if self.index > self.good else 1.0)
        return {"x0": factor * batch["x0"]}


def test_batches_that_are_not_finite_end_the_run_and_a_mended_source_continues(
    tmp_path,
):
    words = (
        r"cycle 5: 2 updates in a row .*student 2.*'student/fit'.*data fields 'x0' .*"
        "repair the source.*memory are finite. Checkpoints are intact"
    )
    config = {"max_skipped": 2, "checkpoint": {"every": 3}}
    with pytest.raises(FloatingPointError, match=words):
        trained(tmp_path, Bad(3), **config)
    assert kept(tmp_path) == [3]
    again = trained(tmp_path, small.Stream(), **config)
    assert equal(again.state, trained(None, small.Stream(), **config).state)


def test_a_teacher_that_is_not_finite_is_refused(tmp_path):
    broken = jax.tree.map(jnp.copy, TEACHER)
    broken["mid"]["w"] = broken["mid"]["w"].at[0, 0].set(jnp.nan)
    words = r"role 'teacher': its parameters 'mid/w' are not finite.*pass those"
    with pytest.raises(ValueError, match=words):
        trained(tmp_path / "run", method=imitating(), params={"teacher": broken})
    with pytest.raises(ValueError, match=r"role 'student': its parameters 'mid/w' are"):
        trained(None, params={"student": broken})
    assert not (tmp_path / "run").exists()


# Data that ends, raises or hangs


def unraised(folder, data, error, words, **config):
    """A fault of the data after a checkpoint; returns what was kept."""
    with pytest.raises(error, match=words):
        trained(folder, data, **config)
    assert (folder / ".lock").read_text() == ""
    return kept(folder)


class Breaking(Stuck):
    """A source that raises once it is told to."""

    def __getitem__(self, index):
        if self.go.is_set():
            raise OSError("unplugged")
        return {"x0": np.full(2, 0.01 * index, np.float32)}


def test_a_source_that_raises(tmp_path):
    data = Breaking(99)
    words = r"source stuck: sample \d+ cannot be read .OSError: unplugged.; repair"
    found = at(3, data.go.set)
    assert unraised(tmp_path, data, ValueError, words, cycles=60, **found)[:1] == [2]
    again = trained(tmp_path, Breaking(99))
    assert equal(again.state, trained(None, Breaking(99)).state)


class Hanging(small.Stream):
    """An iterator that hangs, until it is told to go on."""

    def __init__(self, at):
        super().__init__()
        self.at, self.go = at, threading.Event()

    def __next__(self):
        if self.index == self.at:
            self.go.wait()
        return super().__next__()


def test_an_iterator_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LOOK", 0.02)
    data = Hanging(5)
    words = r"data iterator Hanging: cycle 5: nothing came for 1 s.*raise data_timeout"
    assert unraised(tmp_path, data, TimeoutError, words, data_timeout=1) == [2, 4]
    data.go.set()
    again = trained(tmp_path, small.Stream())
    assert equal(again.state, trained(None, small.Stream()).state)


@pytest.mark.parametrize("make", [Stuck, StuckTake])
def test_a_source_that_hangs_keeps_no_process_alive(tmp_path, monkeypatch, make):
    monkeypatch.setattr(readers, "_LOOK", 0.02)
    before = set(threading.enumerate())
    data = make(0)
    words = r"source stuck: samples \d+, .*: nothing came for 1 s.*raise data_timeout"
    with pytest.raises(TimeoutError, match=words):
        trained(tmp_path, data, data_timeout=1)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        left = [t for t in threading.enumerate() if t not in before and not t.daemon]
        if not left:
            break
        time.sleep(0.02)
    assert left == []
    data.go.set()


class Gated(Stuck):
    """A source that hangs once its gate is shut."""

    shut = False

    def __getitem__(self, index):
        if self.shut:
            self.go.wait()
        return {"x0": np.full(2, 0.01 * index, np.float32)}


def test_ctrl_c_twice_ends_a_run_whose_source_hangs(tmp_path):
    data = Gated(0)

    def twice():
        interrupt()
        time.sleep(0.2)
        interrupt()

    def hang():
        data.shut = True
        threading.Timer(1.0, twice).start()

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, data, cycles=60, **at(3, hang))
    assert kept(tmp_path)[0] == 2
    data.shut = False
    data.go.set()
    assert equal(
        trained(tmp_path, data, cycles=9).state, trained(None, Gated(0), cycles=9).state
    )


# Meshes


def test_a_mesh_that_does_not_fit():
    with pytest.raises(ValueError, match=r"asks for \d+ devices and there are \d"):
        make_mesh({"data": 64, "fsdp": 64})
    with pytest.raises(ValueError, match="'expert'.*data, fsdp, tensor"):
        TrainConfig.of({"mesh": {"expert": 2}})
    config = TrainConfig.of({"batch_size": 30, "mesh": {"data": 2, "fsdp": 2}})
    setup = make_setup(METHOD, NETWORKS, config, (2,))
    with pytest.raises(ValueError, match="batch_size must be a multiple of .* 1 x 4 "):
        check_setup(setup)
    mesh = jax.sharding.AbstractMesh((1, 4, 1), ("data", "fsdp", "tensor"))
    for axes, shape in (((None, "fsdp"), (8, 6)), ((None, "fsdp"), (8,))):
        with pytest.raises(ValueError, match="does not fit parameter 'mid/w'.*divide"):
            placed(mesh, "mid/w", shape, [Rule("w$", axes)])
    with pytest.raises(ValueError, match="a rule is .*'qkv/kernel"):
        TrainConfig.of({"student": {"rules": ["w$"]}})


def test_a_mesh_that_leaves_processes_without_a_device(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: [None] * 4)
    with pytest.raises(ValueError, match="must hold all 4 devices of the 2 processes"):
        make_mesh({"data": 2})


# People


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


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
    with pytest.raises(KeyboardInterrupt):
        trained(None, **at(3, lambda: seen.append(interrupt())))
    assert seen == []
