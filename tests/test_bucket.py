"""Run folders and data in a bucket: what the library itself reads and writes.

The bucket is in memory. Orbax writes arrays with a client of its own, which no memory
can stand in for: here it writes everything but them.
"""

import json

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import distilljax
from distilljax import api, cards, cli, data, generation, methods
from distilljax.experiment.pairs import write_pairs
from distilljax.training import loop
from distilljax.training.checkpoints import Checkpoints
from distilljax.training.config import CheckpointConfig
from distilljax.training.writers import read_metrics
from tests import toy

CARD = {
    "source": {"name": "mixture", "size": 64, "components": 3},
    "networks": {
        "backbone": {"name": "mlp", "width": 8, "hidden": 8, "blocks": 1},
    },
    "cycles": 2,
    "batch_size": 8,
    "log_every": 1,
}


class NoArrays:
    """Checkpoints that keep nothing."""

    def __init__(self, folder, config):
        self.folder = folder

    def restore(self, abstract):
        return None

    def save(self, *args):
        pass

    def check(self):
        pass

    def close(self):
        pass


@pytest.fixture
def run(bucket, monkeypatch):
    """A finished run in the bucket."""
    monkeypatch.setattr(loop, "Checkpoints", NoArrays)
    folder = f"{bucket}/runs/teacher"
    card = cards.card("flow_matching", **CARD)
    api.fit_card(card, folder=folder, progress=False)
    return folder


def names(folder):
    return sorted(path.name for path in epath.Path(folder).iterdir())


def test_a_run_lives_and_is_sampled_in_a_bucket(run, bucket, capsys):
    assert names(run) == ["config.json", "metrics.csv", "metrics.jsonl", "params"]
    record = json.loads((epath.Path(run) / "config.json").read_text())
    assert record["card"]["source"]["name"] == "mixture"
    steps, values = read_metrics(f"{run}/metrics.jsonl")["student/loss"]
    assert steps == [1, 2]
    assert np.isfinite(values).all()
    out = f"{bucket}/samples/a.npz"
    whole = distilljax.sample(run, steps=2, count=6, out=out, batch_size=4)
    with epath.Path(out).open("rb") as file, np.load(file) as found:
        np.testing.assert_array_equal(found["x"], whole)
    assert names(f"{bucket}/samples") == ["a.npz"]
    assert cli.main(["sample", f"--run={run}", "--count=3"]) == 0
    assert f"3 samples in {run}/samples/steps1_seed0.npz" in capsys.readouterr().out
    # Another config is refused as on disk.
    card = cards.card("flow_matching", **{**CARD, "batch_size": 4})
    with pytest.raises(ValueError, match="batch_size: 8 -> 4"):
        api.fit_card(card, folder=run, progress=False)
    # A killed call left a batch there.
    options = {"sample_shape": (2,), "count": 4, "batch_size": 2, "progress": False}
    store = generation._Store(f"{bucket}/parts", "", 0, 2, 4, None)
    store.save(0, np.full((2, 2), 7.0))
    found = generation.generate(
        lambda params, eps, cond, key: eps, {}, resume=f"{bucket}/parts", **options
    )
    np.testing.assert_array_equal(found[:2], 7.0)
    assert not epath.Path(f"{bucket}/parts").exists()


def test_images_go_there_and_come_back(bucket):
    rng = np.random.default_rng(0)
    for name in ("b/0.png", "a/1.png", "a/0.png"):
        path = epath.Path(bucket) / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            pixels = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
    images = data.image_folder(f"{bucket}/images", sample_shape=(4, 4, 3))
    it = data.batches(images, batch_size=3, shuffle=False)
    batch = next(it)
    it.close()
    assert batch["cond"].reshape(-1).tolist() == [0, 0, 1]
    with (epath.Path(bucket) / "a.npz").open("wb") as file:
        np.savez(file, x0=batch["x0"][0, 0], cond=batch["cond"][0, 0])
    found = data.npz(f"{bucket}/a.npz", sample_shape=(4, 4, 3))
    np.testing.assert_array_equal(found.columns["x0"], batch["x0"][0, 0])
    with pytest.raises(ValueError, match="no data at gs://bucket/none.npz"):
        data.npz(f"{bucket}/none.npz", sample_shape=(4, 4, 3))


def test_records_and_pairs_are_written_as_on_disk(bucket, tmp_path):
    source, network = data.mixture(size=9), toy.mlp(num_classes=3, hidden=8)
    params = network.init(jax.random.key(0))
    method = methods.build("flow_matching")
    teacher = api.Fitted(method, network, params, (2,), 3)
    for where in (bucket, str(tmp_path)):
        data.write_records(source, f"{where}/records", shards=2)
        options = {"count": 5, "nfe": 2, "batch_size": 2, "progress": False}
        write_pairs(teacher, f"{where}/pairs", **options)
    for folder in ("records", "pairs"):
        assert names(f"{bucket}/{folder}") == names(tmp_path / folder)
        for path in (tmp_path / folder).glob("*.*"):
            there = epath.Path(f"{bucket}/{folder}/{path.name}").read_bytes()
            assert there == path.read_bytes(), path.name
    assert len(data.records(f"{bucket}/records")) == 9
    with pytest.raises(ValueError, match="other settings.*count: 5 -> 6"):
        write_pairs(teacher, f"{bucket}/pairs", **{**options, "count": 6})


def test_checkpoints_set_partial_ones_aside_there(bucket):
    # Orbax asks Google's client about gs://, so this bucket goes by another name.
    folder = epath.Path(bucket.replace("gs://", "s3://")) / "run"
    partial = folder / "checkpoints" / "5.orbax-checkpoint-tmp"
    partial.mkdir(parents=True)
    (partial / "state").write_text("half")
    with pytest.warns(UserWarning, match="checkpoints/5.orbax-checkpoint-tmp' is part"):
        saves = Checkpoints(folder, CheckpointConfig())
    assert saves.steps == []
    assert names(folder) == ["checkpoints", "damaged"]
    assert (
        folder / "damaged" / "000-5.orbax-checkpoint-tmp" / "state"
    ).read_text() == "half"
    saves.close()
