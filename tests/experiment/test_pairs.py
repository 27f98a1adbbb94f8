"""Pairs of a teacher: exact, resumable, shared by processes, read by methods."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import distilljax
from distilljax import api, data, generation, methods, oracles, pairs, paths
from distilljax.core.draws import StoredPairs, StoredTrajectory
from distilljax.data import array_records
from distilljax.diffusion.solvers import DDIM
from distilljax.diffusion.times import EvenGrid
from distilljax.experiment.pairs import write_pairs
from distilljax.training.checks import check_source
from tests import exact, toy

PATH = paths.linear()
ORACLE = exact.gaussian()


def exact_teacher(path=PATH):
    network = oracles.network(ORACLE, path)
    return api.Fitted(methods.build("flow_matching"), network, {}, (2,))


def trained(seed=0):
    network = toy.mlp(num_classes=3, hidden=8)
    params = network.init(jax.random.key(seed))
    return api.Fitted(methods.build("flow_matching"), network, params, (2,), 3)


def taken(folder):
    source = data.pairs(folder)
    return source.take(np.arange(len(source)))


def write(folder, teacher=None, **options):
    options = {"count": 20, "nfe": 4, "batch_size": 4, **options}
    return write_pairs(teacher or trained(), folder, progress=False, **options)


@pytest.fixture
def small_parts(monkeypatch):
    """Eight samples a part."""
    monkeypatch.setattr(pairs, "PART_BYTES", 8 * (2 + 2 + 1) * 4)


def test_pairs_are_the_noise_of_generate_and_where_the_teacher_leads_it(tmp_path):
    folder = write(tmp_path / "a", exact_teacher(), count=10, nfe=128, seed=3)
    found = taken(folder)
    eps = generation.initial_noise(3, 0, 10, (2,))
    np.testing.assert_array_equal(found["eps"], eps)
    wanted = ORACLE.flow_map(PATH)(PATH.start(eps), PATH.t_max, 0.0)
    np.testing.assert_allclose(found["x0"], wanted, atol=1e-3)
    assert set(found) == {"x0", "eps"}


def test_labels_take_turns_and_guide_the_teacher(tmp_path):
    teacher = trained()
    found = taken(write(tmp_path / "a", teacher, guidance=2.0))
    np.testing.assert_array_equal(found["cond"], np.arange(20) % 3)
    wanted = generation.generate(
        generation.teacher_sampler(teacher.network, 4, guidance=2.0),
        teacher.params,
        sample_shape=(2,),
        labels=np.arange(20) % 3,
        progress=False,
    )
    np.testing.assert_allclose(found["x0"], wanted, rtol=1e-5, atol=1e-6)
    plain = taken(write(tmp_path / "b", teacher))
    assert np.abs(plain["x0"] - found["x0"]).max() > 1e-3
    np.testing.assert_array_equal(plain["eps"], found["eps"])


@pytest.mark.parametrize("path", [PATH, paths.trigflow()], ids=["linear", "trigflow"])
def test_states_of_a_trajectory_lie_on_the_teachers_own(tmp_path, path):
    options = {"kind": "trajectory", "segments": 4, "nfe": 128, "count": 6}
    folder = write(tmp_path / "a", exact_teacher(path), **options)
    found, times = taken(folder), EvenGrid()(4, path)
    assert found["states"].shape == (6, 4, 2)
    np.testing.assert_allclose(found["times"], np.tile(times[:-1], (6, 1)), rtol=1e-6)
    phi = ORACLE.flow_map(path)
    start = found["states"][:, 0]
    np.testing.assert_allclose(
        start, path.start(generation.initial_noise(0, 0, 6, (2,))), rtol=1e-6
    )
    for k, t in enumerate(times[:-1]):
        wanted = phi(start, times[0], t)
        np.testing.assert_allclose(found["states"][:, k], wanted, atol=1e-3)
    np.testing.assert_allclose(found["x0"], phi(start, times[0], 0.0), atol=1e-3)


def test_a_killed_call_goes_on_with_the_missing_parts(
    tmp_path, monkeypatch, small_parts
):
    whole = write(tmp_path / "whole")
    assert len(list(whole.glob("*.array_record"))) == 3
    original, written = array_records.write_shard, []

    def counted(path, rows):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return original(path, rows)

    monkeypatch.setattr(array_records, "write_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut")
    with pytest.raises(ValueError, match="no records in"):
        data.pairs(tmp_path / "cut")
    written[:] = ["another call"]
    write(tmp_path / "cut")
    assert written[1:] == ["part-00002-of-00003.array_record"]
    assert data.pairs(tmp_path / "cut").fingerprint == data.pairs(whole).fingerprint
    # A finished folder is left as it is.
    written[:] = []
    write(tmp_path / "cut")
    assert not written


def test_processes_share_the_parts(tmp_path, monkeypatch, small_parts):
    whole = write(tmp_path / "whole")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        folder = write(tmp_path / "shared")
        assert (folder / "data.json").exists() == (index == 0)
    assert data.pairs(folder).fingerprint == data.pairs(whole).fingerprint


def test_the_manifest_says_how_they_were_made(tmp_path):
    folder = write(tmp_path / "a", seed=5, guidance=1.5, solver=DDIM(), nfe=3)
    made = json.loads((folder / "data.json").read_text())["origin"]
    assert made == json.loads((folder / "pairs.json").read_text())
    known = {"seed": 5, "guidance": 1.5, "solver": "DDIM()", "nfe": 3, "count": 20}
    assert known.items() <= made.items()
    assert made["teacher"] == "flow_matching"
    assert made["batch_size"] == 4
    assert made["conditions"] == data.labels(3, (2,)).fingerprint
    assert (
        made["params"]
        != json.loads((write(tmp_path / "b", trained(1)) / "pairs.json").read_text())[
            "params"
        ]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"pairs of other settings.*seed: 0 -> 1\. Choose another"),
        ({"teacher": trained(1)}, r"other settings.*params: \d+ -> \d+"),
        ({"kind": "pair"}, "unknown kind 'pair'. Did you mean 'pairs'"),
        ({"nfe": 5}, "nfe 5 cannot be spent by Heun"),
        ({"kind": "trajectory", "segments": 3}, "segments must divide the 2 steps"),
        ({"count": 0}, "count must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_refuses(tmp_path, change, message):
    write(tmp_path / "a", count=4)
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a", **{"count": 4, **change})


def test_refuses_a_folder_of_something_else_and_samples_that_are_not_finite(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        write(tmp_path)
    teacher = trained()
    broken = jax.tree.map(lambda p: p * np.nan, teacher.params)
    with pytest.raises(ValueError, match="sample 0 is not finite"):
        write(tmp_path / "b", dataclasses.replace(teacher, params=broken))


@pytest.mark.full
def test_the_warm_start_of_dmd2_trains_on_a_bank(tmp_path):
    teacher = trained()
    write(tmp_path / "bank", teacher, kind="trajectory", segments=2)
    options = {"gan_weight": 0, "critic_steps": 1, "steps": (2,), "warm_start": 1}
    method = methods.build("dmd2", warm_start_draw=StoredTrajectory(2), **options)
    assert method.batch == {"x0", "states", "times"}
    given = {
        "networks": teacher.network,
        "source": data.pairs(tmp_path / "bank"),
        "teacher": teacher,
        "config": {"cycles": 1, "batch_size": 4},
        "progress": False,
    }
    found = distilljax.fit(method, **given)
    assert found.result.metrics["student/trajectory_end"] > 0.0
    wrong = methods.build(
        "dmd2", warm_start_draw=StoredTrajectory(4), **{**options, "steps": (4,)}
    )
    with pytest.raises(ValueError, match=r"4 states per sample, got 2.*--segments=4"):
        distilljax.fit(wrong, **given)


def test_methods_accept_the_kind_that_they_read(tmp_path):
    bank = data.pairs(write(tmp_path / "bank", kind="trajectory", segments=2))
    both = data.pairs(write(tmp_path / "pairs"))
    reads_pairs = (
        methods.build("reflow", online=False),
        methods.build("dmd", pairs=StoredPairs()),
        methods.build("dmd2", warm_start=1, warm_start_draw=StoredPairs()),
    )
    reads_bank = methods.build(
        "dmd2", steps=(2,), warm_start=1, warm_start_draw=StoredTrajectory(2)
    )
    for method, right, wrong in [
        *((method, both, bank) for method in reads_pairs),
        (reads_bank, bank, both),
    ]:
        check_source(method, right)
        with pytest.raises(ValueError, match="needs data fields"):
            check_source(method, wrong)


SCRIPT = """
import sys
import jax
from tests.experiment import test_pairs
assert jax.local_device_count() == 4
test_pairs.write(sys.argv[1], nfe=8)
try:
    test_pairs.write(sys.argv[1] + "2", batch_size=6)
except ValueError as error:
    print(error)
"""


def test_several_devices_split_the_batch(tmp_path):
    flags = "--xla_force_host_platform_device_count=4 "
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "four")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XLA_FLAGS": flags + os.environ["XLA_FLAGS"]},
    )
    assert "must be a multiple of the 4 devices, got 6" in out.stdout
    one = taken(write(tmp_path / "one", nfe=8))
    four = taken(tmp_path / "four")
    assert one.keys() == four.keys()
    for name, value in one.items():
        np.testing.assert_allclose(four[name], value, rtol=1e-5, atol=1e-6)
