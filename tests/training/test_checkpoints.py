import json

import jax
import numpy as np
import pytest

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
META = {"frozen": 7, "seconds": 1.5}


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
