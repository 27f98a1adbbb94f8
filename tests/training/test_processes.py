"""Several processes train as one: killed, stopped and resumed in other numbers.

The digits job runs in real processes of fake devices that talk over loopback, started
with the flags of the command line.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
CYCLES = 12
JOB = (
    "--config=configs/digits/teacher.py",
    f"--config.cycles={CYCLES}",
    "--config.batch_size=32",
    "--config.log_every=1",
    "--config.checkpoint.every=4",
    "--config.networks.backbone.width=32",
    "--config.networks.backbone.hidden=32",
    "--config.networks.backbone.blocks=1",
    # Steps that are large beside the tolerances.
    "--config.student.lr=1e-2",
    "--config.student.schedule.warmup=1",
    "--config.student.ema=0.5",
)
DATA = ("--config.mesh.data=8",)
# Kills come while it trains, not after it.
SLOW = {"slow": 0.3}


def started(folder, count=2, mesh=DATA, disturbed=None):
    """Processes of eight devices in all; ``disturbed`` of all, or one of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = f"--xla_force_host_platform_device_count={8 // count}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{devices} {os.environ.get('XLA_FLAGS', '')}",
        # Fewer threads than devices can deadlock collectives on the CPU.
        "PJRT_NPROC": "32",
        "JAX_PLATFORMS": "cpu",
    }
    if not isinstance(disturbed, list):
        disturbed = [disturbed or {}] * count
    folder.parent.mkdir(exist_ok=True)
    processes = []
    for index in range(count):
        who = [f"--coordinator=localhost:{port}", f"--processes={count}"]
        who = [*who, f"--process={index}"] if count > 1 else []
        with open(f"{folder}.{index}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.training.digits_job"]
                    + [json.dumps(disturbed[index]), "train", f"--out={folder}"]
                    + [*who, *JOB, *mesh],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def said(folder, index=0):
    return pathlib.Path(f"{folder}.{index}.log").read_text()


def ended(processes, folder, codes=(0,)):
    """Waits for all; their exit codes must be among those given."""
    try:
        found = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert set(found) <= set(codes), (found, said(folder)[-3000:])


def ran(folder, **how):
    """A run to its end."""
    ended(started(folder, **how), folder)
    return folder


def until(there, processes, seconds=200):
    """Waits for something to happen while the processes live."""
    begun = time.monotonic()
    while not there():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < begun + seconds
        time.sleep(0.02)


def records(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines
    ]


def trained(processes, folder, cycle):
    until(lambda: len(records(folder)) >= cycle, processes)


def parameters(folder):
    with np.load(folder / "params" / "student.npz") as found:
        return dict(found)


def steps(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def fingerprints(folder):
    """Of the states in the checkpoints: optimizer, averages and key too."""
    return {
        path.parts[-3]: json.loads(path.read_text())["fingerprint"]
        for path in (folder / "checkpoints").glob("*/meta/metadata")
    }


def assert_equal(folder, other):
    assert records(folder) == records(other)
    found, expected = parameters(folder), parameters(other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name])
    shared = fingerprints(folder).keys() & fingerprints(other).keys()
    assert str(CYCLES) in shared
    for step in shared:
        assert fingerprints(folder)[step] == fingerprints(other)[step]


def assert_close(folder, other):
    found, expected = records(folder), records(other)
    assert [r["step"] for r in found] == list(range(1, CYCLES + 1))
    for mine, its in zip(found, expected, strict=True):
        assert mine.keys() == its.keys()
        for name, value in mine.items():
            assert value == pytest.approx(its[name], rel=1e-4), name
    mine, its = parameters(folder), parameters(other)
    for name, value in mine.items():
        np.testing.assert_allclose(value, its[name], rtol=0, atol=2e-5)


def killed(folder, when, **how):
    """Both processes of a run killed without warning when something has happened."""
    processes = started(folder, **how)
    until(when, processes)
    for process in processes:
        process.kill()
    ended(processes, folder, (-signal.SIGKILL,))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """An unbroken run of one process with eight devices."""
    return ran(tmp_path_factory.mktemp("one") / "run", count=1)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """An unbroken run of two processes."""
    return ran(tmp_path_factory.mktemp("two") / "run")


def test_a_signal_at_one_of_two_stops_both_and_one_process_goes_on(one, tmp_path):
    """The data order, too, does not depend on the number of processes."""
    folder = tmp_path / "run"
    processes = started(folder, disturbed=SLOW)
    trained(processes, folder, 5)
    processes[1].send_signal(signal.SIGTERM)
    ended(processes, folder, (128 + signal.SIGTERM,))
    assert len(records(folder)) in range(5, CYCLES)
    assert f"SIGTERM after cycle {len(records(folder))}; saved" in said(folder)
    assert steps(folder)[-1] == str(len(records(folder)))
    assert all("reads 16 samples of a batch" in said(folder, i) for i in (0, 1))
    assert_close(ran(folder, count=1), one)
    assert "reads 32 samples of a batch" in said(folder)
    moved = [np.abs(v).max() for k, v in parameters(one).items() if "bias" in k]
    assert max(moved) > 1e-2


@pytest.mark.full
def test_two_processes_train_as_one(one, two):
    assert_close(two, one)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_point_they_continue_bit_for_bit(two, tmp_path, seed):
    draw = random.Random(seed)
    cycle, moment = draw.randrange(1, CYCLES), draw.uniform(0.0, SLOW["slow"])
    folder = tmp_path / "run"

    def due():
        if len(records(folder)) < cycle:
            return False
        time.sleep(moment)
        return True

    killed(folder, due, disturbed=SLOW)
    assert len(records(folder)) < CYCLES
    assert_equal(ran(folder), two)


@pytest.mark.full
def test_killed_while_saving_they_continue_from_the_checkpoint_before(two, tmp_path):
    folder = tmp_path / "run"
    held = tmp_path / "held"
    killed(folder, held.exists, disturbed={**SLOW, "hold": 8})
    assert len(steps(folder)) == 2
    assert steps(folder)[0] == "4"
    assert "8" not in steps(folder)
    assert_equal(ran(folder), two)
    assert "continues after cycle 4" in said(folder)
    assert "is partial" in said(folder)


@pytest.mark.full
@pytest.mark.parametrize(
    "how",
    [
        {"count": 1},
        {"mesh": ("--config.mesh.data=2", "--config.mesh.fsdp=4")},
        {"mesh": ("--config.mesh.fsdp=8",)},
    ],
    ids=["one process", "data 2, fsdp 4", "fsdp 8"],
)
def test_killed_they_continue_on_another_mesh(two, tmp_path, how):
    folder = tmp_path / "run"
    killed(folder, lambda: len(records(folder)) >= 6, disturbed=SLOW)
    assert_close(ran(folder, **how), two)
    assert "continues after cycle 4" in said(folder)


@pytest.mark.full
@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_parameters_spread_over_processes(one, tmp_path, axis):
    """Grids, checkpoints and the parameters' file hold what no process has whole."""
    mesh = (f"--config.mesh.{axis}=8", "--config.sample_every=6")
    folder = tmp_path / "run"
    processes = started(folder, mesh=mesh, disturbed=SLOW)
    trained(processes, folder, 5)
    for process in processes:
        process.send_signal(signal.SIGINT)
    ended(processes, folder, (128 + signal.SIGINT,))
    assert_close(ran(folder, mesh=mesh), one)
    share = 32 if axis == "tensor" else 16
    assert f"reads {share} samples of a batch" in said(folder, 1)
    assert (folder / "samples" / f"cycle_{CYCLES:06d}.png").is_file()


@pytest.mark.full
def test_two_processes_distil_as_one(one, tmp_path):
    """A teacher given, a critic and a discriminator, spread over both."""
    job = ("--config=configs/digits/dmd2.py", f"--teacher={one}", "--config.cycles=4")
    job = (*job, "--config.mesh.data=2", "--config.mesh.fsdp=4")
    mine = parameters(ran(tmp_path / "two", mesh=job))
    its = parameters(ran(tmp_path / "one", mesh=job, count=1))
    for name, value in mine.items():
        np.testing.assert_allclose(value, its[name], rtol=0, atol=2e-5)
    start = parameters(one)
    assert max(np.abs(mine[name] - start[name]).max() for name in mine) > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_ends_the_other_with_a_message(tmp_path, victim):
    folder = tmp_path / "run"
    processes = started(folder, disturbed={**SLOW, "heartbeat": 10})
    trained(processes, folder, 5)
    processes[victim].kill()
    begun = time.monotonic()
    ended(processes, folder, (-signal.SIGKILL, -signal.SIGABRT))
    assert time.monotonic() < begun + 30
    assert "another task died" in said(folder, 1 - victim)


@pytest.mark.full
@pytest.mark.parametrize(
    ("trouble", "patience", "message"),
    [
        ({"fail": 7}, 60, "another task died"),
        ({"hang": 7}, 8, "process 0 waited 8 s for the others"),
    ],
    ids=["fails", "hangs"],
)
def test_trouble_in_one_ends_the_other_with_a_message(
    tmp_path, trouble, patience, message
):
    folder = tmp_path / "run"
    common = {**SLOW, "heartbeat": 10, "patience": patience}
    processes = started(folder, disturbed=[common, {**common, **trouble}])
    trained(processes, folder, 5)
    begun = time.monotonic()
    ended(processes, folder, (1, -signal.SIGABRT))
    assert time.monotonic() < begun + 45
    assert message in said(folder)


@pytest.mark.full
def test_a_refused_folder_is_refused_in_both(one):
    """The folder holds a run of another seed; nothing in it changes."""
    before = (one / "config.json").read_text()
    processes = started(one, mesh=(*DATA, "--config.seed=7"))
    ended(processes, one, (2,))
    for index in (0, 1):
        assert "seed: 0 -> 7" in said(one, index)
    assert (one / "config.json").read_text() == before


@pytest.mark.full
def test_a_checkpoint_that_one_cannot_read_is_set_aside_by_all(one, tmp_path):
    """Only process 1 reads the part that is damaged; process 0 could go on alone."""
    mesh = ("--config.mesh.fsdp=8",)
    folder = ran(tmp_path / "run", mesh=mesh)
    state = folder / "checkpoints" / str(CYCLES) / "state"
    parts = sorted((state / "ocdbt.process_1" / "d").iterdir())
    part = max(parts, key=lambda path: path.stat().st_size)
    data = part.read_bytes()
    quarter = len(data) // 4
    flipped = bytes(byte ^ 0xFF for byte in data[quarter:-quarter])
    part.write_bytes(data[:quarter] + flipped + data[-quarter:])
    assert_close(ran(folder, mesh=mesh), one)
    assert "process 1 failed to read checkpoint 12" in said(folder)
    assert "continues after cycle 8" in said(folder)
