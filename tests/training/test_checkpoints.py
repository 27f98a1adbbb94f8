import json
import math
import shutil

import jax
import numpy as np
import pytest

from distilljax import __version__
from distilljax.training import Hooks, create_state, make_setup, train
from distilljax.training.checkpoints import Checkpoints
from distilljax.training.config import CheckpointConfig, TrainConfig
from distilljax.training.digests import fingerprint
from distilljax.training.state import abstract
from tests.training import small
from tests.training.test_cycle import NETWORKS
from tests.training.test_loop import CONFIG, equal, source

SETUP = make_setup(
    small.following(decay=0.9),
    NETWORKS,
    TrainConfig.of({"batch_size": 8, "student": {"ema": 0.9}}),
    (2,),
)
META = {"frozen": 7, "seconds": 1.5, "version": __version__}


def saved(folder, steps=(1, 2, 3), **config):
    """Checkpoints with the step number in them."""
    saves = Checkpoints(folder, CheckpointConfig(keep=9, **config))
    state = create_state(SETUP)
    for step in steps:
        state = state._replace(step=state.step * 0 + step)
        saves.save(step, state, {"next": step, "raw": np.int64(3)}, META)
    saves.close()
    return state


def restored(folder):
    saves = Checkpoints(folder, CheckpointConfig(keep=9))
    found = saves.restore(abstract(SETUP))
    saves.close()
    return found


def damage(folder, how: str) -> None:
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 500]
    assert files
    for path in files:
        content = path.read_bytes()
        if how == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif how == "flip":
            middle = len(content) // 2
            byte = bytes([content[middle] ^ 0xFF])
            path.write_bytes(content[:middle] + byte + content[middle + 1 :])
        else:
            path.unlink()


def test_round_trip(tmp_path):
    state = saved(tmp_path)
    found = restored(tmp_path)
    assert found.step == 3
    assert equal(found.state, state)
    assert found.data == {"next": 3, "raw": 3}
    assert found.meta["seconds"] == 1.5
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    assert found.state.key.dtype == state.key.dtype


def test_bytes_of_an_iterator(tmp_path):
    saves = Checkpoints(tmp_path, CheckpointConfig())
    saves.save(1, create_state(SETUP), b"\x00\xff", META)
    saves.close()
    assert restored(tmp_path).data == b"\x00\xff"


@pytest.mark.parametrize("how", ["cut", "flip", "remove"])
def test_damaged_is_said_and_the_one_before_is_used(tmp_path, how):
    saved(tmp_path)
    damage(tmp_path / "checkpoints" / "3", how)
    with pytest.warns(UserWarning, match=r"checkpoints/3' is damaged"):
        found = restored(tmp_path)
    assert found.step == 2
    assert int(found.state.step) == 2
    assert [p.name for p in (tmp_path / "damaged").iterdir()] == ["000-3"]


@pytest.mark.parametrize("part", ["params", "opt"])
def test_numbers_that_are_not_finite_are_damage(tmp_path, part):
    """A bounded optimizer would carry them on, see `optimizers.Bounded`."""
    state = saved(tmp_path, steps=(1, 2))

    def lost(x):
        return x * np.nan if np.issubdtype(x.dtype, np.floating) else x

    state = state._replace(**{part: jax.tree.map(lost, getattr(state, part))})
    saves = Checkpoints(tmp_path, CheckpointConfig(keep=9))
    saves.save(3, state, {}, META)
    saves.close()
    with pytest.warns(UserWarning, match=f"{part}/.* are not finite"):
        assert restored(tmp_path).step == 2


def test_partial_is_said_and_the_one_before_is_used(tmp_path):
    saved(tmp_path)
    root = tmp_path / "checkpoints"
    (root / "3").rename(root / "3.orbax-checkpoint-tmp")
    with pytest.warns(UserWarning, match="is partial"):
        found = restored(tmp_path)
    assert found.step == 2
    assert (tmp_path / "damaged" / "000-3.orbax-checkpoint-tmp").is_dir()


def test_a_step_is_never_overwritten(tmp_path):
    saved(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    saved(tmp_path, steps=(3,))
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_another_state_is_no_damage(tmp_path):
    saved(tmp_path)
    other = make_setup(small.regression(), NETWORKS, TrainConfig(batch_size=8), (2,))
    saves = Checkpoints(tmp_path, CheckpointConfig())
    with pytest.raises(ValueError, match=r"another state.*target"):
        saves.restore(abstract(other))
    saves.close()
    assert restored(tmp_path).step == 3


def kept(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir())


def test_retention(tmp_path):
    config = {**CONFIG, "cycles": 10}
    policy = {"every": 1, "keep": 2, "keep_period": 4}
    train(
        small.regression(), NETWORKS, None, source(),
        {**config, "checkpoint": policy}, tmp_path / "period", progress=False,
    )  # fmt: skip
    assert kept(tmp_path / "period") == [4, 8, 9, 10]
    scores = {2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0, 10: 9.0}
    policy = {"every": 2, "keep": 2, "best": "score"}
    train(
        small.regression(), NETWORKS, None, source(),
        {**config, "checkpoint": policy, "evaluate_every": 2}, tmp_path / "best",
        hooks=Hooks(evaluate=lambda view: {"score": scores[view.step]}),
        progress=False,
    )  # fmt: skip
    assert kept(tmp_path / "best") == [4, 8, 10]


def test_training_continues_past_a_damaged_checkpoint(tmp_path):
    config = {**CONFIG, "checkpoint": {"every": 2, "keep": 9}}
    args = (small.regression(), NETWORKS, None)
    whole = train(*args, source(), config, tmp_path, progress=False)
    damage(tmp_path / "checkpoints" / "6", "cut")
    with pytest.warns(UserWarning, match="damaged"):
        again = train(*args, source(), config, tmp_path, progress=False)
    assert equal(whole.state, again.state)
    assert kept(tmp_path) == [2, 4, 6]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4, 6]


def test_fingerprint_sees_every_leaf():
    state = create_state(SETUP)
    leaves, structure = jax.tree.flatten(state)
    marks = {fingerprint(state)}
    for index, leaf in enumerate(leaves):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        changed = np.array(leaf)
        changed.reshape(-1)[-1] += 1
        tree = jax.tree.unflatten(
            structure,
            [*leaves[:index], jax.numpy.asarray(changed), *leaves[index + 1 :]],
        )
        marks.add(fingerprint(tree))
    assert len(marks) == len(leaves)


@pytest.mark.parametrize(
    ("item", "old", "new"),
    [
        ("meta", "float32[", "float36["),
        ("meta", '"frozen": 7', '"frozen": 3'),
        ("meta", '"fingerprint"', '"fingerprinu"'),
        ("meta", '"checksum"', '"checksul"'),
        ("data", '"next": 3', '"next": 7'),
        ("data", '"state"', '"stape"'),
    ],
)
def test_one_changed_bit_beside_the_arrays_is_damage(tmp_path, item, old, new):
    saved(tmp_path)
    path = tmp_path / "checkpoints" / "3" / item / "metadata"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.warns(UserWarning, match=r"checkpoints/3' is damaged"):
        found = restored(tmp_path)
    assert (found.step, found.data["next"]) == (2, 2)


def test_what_cannot_be_read_now_is_no_damage(tmp_path, monkeypatch):
    """A stale handle is tried again; one that stays is an error that moves nothing."""
    saved(tmp_path)
    read, calls = Checkpoints._read, []

    def broken(self, step, abstract):
        calls.append(step)
        if len(calls) <= failures:
            raise OSError(116, "Stale file handle")
        return read(self, step, abstract)

    monkeypatch.setattr(Checkpoints, "_read", broken)
    monkeypatch.setattr("distilljax.training.checkpoints._AGAIN", (0.0, 0.0))
    failures = 1
    assert restored(tmp_path).step == 3
    assert calls == [3, 3]
    failures = 99
    with pytest.raises(OSError, match="cannot be read now .*permissions"):
        restored(tmp_path)
    assert not (tmp_path / "damaged").exists()


def test_copies_that_a_user_made_are_left_alone(tmp_path):
    saved(tmp_path)
    root = tmp_path / "checkpoints"
    shutil.copytree(root / "3", root / "3.good")
    (root / "2.tar.gz").write_bytes(b"a copy")
    assert restored(tmp_path).step == 3
    assert {"3.good", "2.tar.gz"} <= {p.name for p in root.iterdir()}


def test_names_of_what_is_set_aside_do_not_collide(tmp_path):
    saved(tmp_path)
    for name in ("001-3", "note.txt"):
        (tmp_path / "damaged" / name).mkdir(parents=True)
    damage(tmp_path / "checkpoints" / "3", "cut")
    damage(tmp_path / "checkpoints" / "2", "cut")
    with pytest.warns(UserWarning, match="is damaged"):
        assert restored(tmp_path).step == 1
    found = sorted(p.name for p in (tmp_path / "damaged").iterdir())
    assert found == ["000-3", "001-3", "002-2", "note.txt"]


def test_a_metric_that_is_no_number_is_never_the_best(tmp_path):
    policy = {"every": 1, "keep": 1, "best": "score"}
    for mode, scores in (("min", [3.0, 1.0, math.nan, 2.0]), ("max", [1.0, 3.0, 2.0])):
        found = iter([*scores, math.nan])
        config = {**CONFIG, "cycles": len(scores) + 1, "evaluate_every": 1}
        train(
            small.regression(), NETWORKS, None, source(),
            {**config, "checkpoint": {**policy, "best_mode": mode}}, tmp_path / mode,
            hooks=Hooks(evaluate=lambda view, found=found: {"score": next(found)}),
            progress=False,
        )  # fmt: skip
        assert kept(tmp_path / mode) == [2, len(scores) + 1]
