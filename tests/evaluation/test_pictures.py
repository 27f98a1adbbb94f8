"""Folders of pictures, and single ones, as samples."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from distilljax.evaluation.pictures import read_pictures
from distilljax.evaluation.samples import read_reference, read_samples

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)


def test_a_folder_of_pictures_is_read_as_it_is(tmp_path):
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    found = read_reference(tmp_path)
    np.testing.assert_array_equal(found.rows, PIXELS)
    assert (found.value_range, found.rounding) == ("[0, 255]", "uint8")
    assert found.labels is None


def test_class_folders_are_labels_and_grey_pictures_have_one_channel(tmp_path):
    for i, pixels in enumerate(PIXELS):
        folder = tmp_path / ("cat", "dog")[i % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(folder / f"{i}.png")
    found = read_samples(tmp_path)
    order = [0, 2, 4, 1, 3, 5]
    np.testing.assert_array_equal(found.rows, PIXELS[order][..., :1])
    np.testing.assert_array_equal(found.labels, [0, 0, 0, 1, 1, 1])


def test_one_picture_is_one_sample(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_samples(tmp_path / "a.png").rows, PIXELS[:1])


def test_pictures_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png", exif=exif)
    turned = read_pictures(epath.Path(tmp_path / "a.png")).rows
    np.testing.assert_array_equal(turned[0], np.rot90(PIXELS[0], -1))


def test_several_sizes_and_damage_are_named(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[1][:4]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="4 x 5 in .*a.png and 4 x 4 in .*b.png"):
        read_samples(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="b.png is no picture that can be read"):
        read_samples(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images at .*empty"):
        read_samples(tmp_path / "empty")
