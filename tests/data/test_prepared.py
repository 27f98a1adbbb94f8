"""TFDS data sets, prepared here as ArrayRecord and read without TensorFlow."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from distilljax import cards, data

COUNT, CLASSES = 7, 3


def pixels(index):
    return np.random.default_rng(index).integers(0, 256, (6, 8, 3)).astype(np.uint8)


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures with labels, and latents of them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(6, 8, 3)),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                    "latent": tfds.features.Tensor(shape=(2, 2, 4), dtype=np.float32),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            png = io.BytesIO()
            Image.fromarray(pixels(i)).save(png, "PNG")
            png.seek(0)
            latent = np.full((2, 2, 4), i, np.float32)
            yield i, {"image": png, "label": i % CLASSES, "latent": latent}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("tfds")
    builder = TinyPictures(data_dir=where, file_format="array_record")
    builder.download_and_prepare()
    return where


def source(folder, **options):
    options = {"sample_shape": (6, 8, 3), "data_dir": folder, **options}
    return data.tfds("tiny_pictures", **options)


def test_images_and_labels_are_those_that_were_prepared(folder):
    found = source(folder)
    assert (len(found), found.num_classes) == (COUNT, CLASSES)
    assert found.fields == ("x0", "cond")
    # TFDS shuffles as it prepares: the latent says which picture it is.
    latents = source(folder, x0="latent", sample_shape=(2, 2, 4))
    numbers = [int(latents[i]["x0"][0, 0, 0]) for i in range(COUNT)]
    assert sorted(numbers) == list(range(COUNT))
    for i, number in enumerate(numbers):
        wanted = pixels(number).astype(np.float32) / np.float32(127.5) - np.float32(1)
        np.testing.assert_array_equal(found[i]["x0"], wanted)
        assert found[i]["cond"] == number % CLASSES
        assert found[i]["cond"].dtype == np.int32


def test_splits_shapes_and_mirror_images(folder):
    part = source(folder, split="train[:3]", sample_shape=(4, 4, 3), flip=True)
    assert len(part) == 6
    assert part[0]["x0"].shape == (4, 4, 3)
    np.testing.assert_array_equal(part[3]["x0"], part[0]["x0"][:, ::-1])
    prints = {
        source(folder, **options).fingerprint
        for options in ({}, {"split": "train[:3]"}, {"sample_shape": (4, 4, 3)})
    }
    assert len(prints) == 3
    assert source(folder, cond="").fields == ("x0",)


def test_it_goes_through_the_pipeline_and_from_a_card(folder):
    config = cards.card(
        "flow_matching",
        source={
            "name": "tfds",
            "dataset": "tiny_pictures",
            "data_dir": str(folder),
            "sample_shape": (4, 4, 3),
            "num_classes": CLASSES,
        },
        networks={"backbone": {"name": "mlp", "width": 8, "hidden": 8, "blocks": 1}},
    )
    found = cards.expand(config)
    assert found.networks["backbone"].num_classes == CLASSES
    it = data.batches(found.source, batch_size=4)
    batch = next(it)
    it.close()
    assert batch["x0"].shape == (1, 1, 4, 4, 4, 3)
    assert batch["cond"].dtype == np.int32


READ = """
import sys
from distilljax import data
found = data.tfds("tiny_pictures", sample_shape=(6, 8, 3), data_dir=sys.argv[1])
print(len(found), found[0]["x0"].shape, "tensorflow" in sys.modules)
"""


def test_another_process_reads_it_without_the_builder_or_tensorflow(folder):
    out = subprocess.run(
        [sys.executable, "-c", READ, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert out.stdout.split("\n")[0] == f"{COUNT} (6, 8, 3) False"


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("tiny_picturess", {}, "no data set 'tiny_picturess'.*check name and data_dir"),
        ("mnist", {}, "'mnist' is not prepared.*tfds build mnist"),
        ("tiny_pictures", {"split": "test"}, "split 'test'.*Splits: train"),
        ("tiny_pictures", {"x0": "img"}, "unknown feature as x0 'img'.*Known: image"),
        ("tiny_pictures", {"num_classes": 2}, "num_classes=2: .* has 3 classes"),
        ("tiny_pictures", {"sample_shape": (6, 8)}, r"must be \(H, W, C\)"),
    ],
)
def test_refuses(folder, dataset, options, message):
    options = {"sample_shape": (6, 8, 3), "data_dir": folder, **options}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        data.tfds(dataset, **options)
