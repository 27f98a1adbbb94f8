"""Faults of numbers, data and meshes: what is said, and that nothing is lost."""

import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.core.method import Follow, Out, Phase, Role, Term, check
from distilljax.data import readers
from distilljax.training import (
    build_cycle,
    create_frozen,
    create_state,
    make_setup,
)
from distilljax.training.checks import check_setup
from distilljax.training.config import TrainConfig
from distilljax.training.placement import Rule, make_mesh, placed
from tests.data.test_readers import Stuck, StuckTake
from tests.training import small
from tests.training.test_checkpoints import kept
from tests.training.test_cycle import NETWORKS, imitating
from tests.training.test_faults import METHOD, at, trained
from tests.training.test_loop import equal
from tests.training.test_state import TEACHER


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
    """Batches of which some are not finite, by their number."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def __next__(self):
        batch = super().__next__()
        factor = np.float32(np.nan if self.bad(self.index) else 1.0)
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
        trained(tmp_path, Bad(lambda index: index > 3), **config)
    assert kept(tmp_path) == [3]
    again = trained(tmp_path, small.Stream(), **config)
    assert equal(again.state, trained(None, small.Stream(), **config).state)


def test_no_checkpoint_of_skipped_updates_pushes_out_a_sound_one(tmp_path):
    """It is saved as soon as updates are taken again."""
    config = {"cycles": 9, "max_skipped": 4, "checkpoint": {"every": 1, "keep": 2}}
    with pytest.raises(FloatingPointError, match="cycle 7: 4 updates in a row"):
        trained(tmp_path / "a", Bad(lambda index: index > 3), **config)
    assert kept(tmp_path / "a") == [2, 3]
    config["checkpoint"] = {"every": 3, "keep": 9}
    trained(tmp_path / "b", Bad(lambda index: index == 3), **config)
    assert kept(tmp_path / "b") == [4, 6, 9]
    # The last one is saved as it is.
    trained(tmp_path / "c", Bad(lambda index: index == 9), **config)
    assert kept(tmp_path / "c") == [3, 6, 9]


def test_a_teacher_that_is_not_finite_is_refused(tmp_path):
    broken = jax.tree.map(jnp.copy, TEACHER)
    broken["mid"]["w"] = broken["mid"]["w"].at[0, 0].set(jnp.nan)
    words = r"role 'teacher': its parameters 'mid/w' are not finite.*pass those"
    with pytest.raises(ValueError, match=words):
        trained(tmp_path / "run", method=imitating(), params={"teacher": broken})
    with pytest.raises(ValueError, match=r"role 'student': its parameters 'mid/w' are"):
        trained(None, params={"student": broken})
    assert not (tmp_path / "run").exists()


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

    def __init__(self, *args):
        super().__init__(*args)
        self.hangs = threading.Event()

    def __getitem__(self, index):
        if self.shut:
            self.hangs.set()
            self.go.wait()
        return {"x0": np.full(2, 0.01 * index, np.float32)}


def test_ctrl_c_twice_ends_a_run_whose_source_hangs(tmp_path):
    data = Gated(0)

    def twice():
        # As a terminal does it, at the main thread, which only this wakes; two signals
        # that it has not seen yet would count as one.
        data.hangs.wait()
        for _ in range(2):
            time.sleep(1.0)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def hang():
        data.shut = True
        threading.Thread(target=twice, daemon=True).start()

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, data, cycles=60, data_timeout=60, **at(3, hang))
    assert kept(tmp_path)[0] == 2
    data.shut = False
    data.go.set()
    assert equal(
        trained(tmp_path, data, cycles=9).state, trained(None, Gated(0), cycles=9).state
    )


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
