"""Where samples are written, and that evaluation reads them back."""

import json

import numpy as np
import pytest
from PIL import Image

from distilljax.evaluation import sample_files
from distilljax.evaluation.sample_files import parts_of, range_of, target, write
from distilljax.evaluation.samples import read_samples

X = np.random.default_rng(0).uniform(-1.1, 1.1, (12, 6, 4, 3)).astype(np.float32)
LABELS = np.arange(12) % 3
RECORD = {"value_range": "[-1, 1]", "seed": 7, "steps": 2}
# What no range can be detected of: all values lie between 0 and 0.5.
DARK = np.abs(X[..., :1]) / 2.2


@pytest.mark.parametrize(
    ("out", "files"),
    [
        ("x.npz", {"x.npz", "x.png"}),
        ("x.npy", {"x.npy", "x.npy.json", "x.png"}),
        ("x.png", {"x.npz", "x.png"}),
        ("x.JPG", {"x.npz", "x.JPG"}),
    ],
)
@pytest.mark.parametrize("x", [X, DARK])
def test_what_is_written_is_read_with_range_and_labels(tmp_path, out, files, x):
    to = target(tmp_path / out, x.shape[1:])
    write(to, x, LABELS, RECORD)
    assert {path.name for path in tmp_path.iterdir()} == files
    found = read_samples(tmp_path / out)
    np.testing.assert_array_equal(found.rows, x)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.value_range == "[-1, 1]"
    assert found.record == RECORD
    assert read_samples(tmp_path / out, value_range="[0, 1]").value_range == "[0, 1]"


@pytest.mark.parametrize("x", [X, DARK])
def test_a_folder_holds_a_picture_a_sample_and_the_arrays(tmp_path, x):
    folder = tmp_path / "many"
    for count in (12, 5):
        to = target(f"{folder}/", x.shape[1:])
        write(to, x[:count], LABELS[:count], RECORD)
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{i:06d}.png" for i in range(5)} | {"samples.npz"}
    found = read_samples(folder)
    assert found.value_range == "[0, 255]"
    np.testing.assert_array_equal(found.labels, LABELS[:5])
    clipped = np.clip(x[:5], -1, 1)
    np.testing.assert_allclose(found.prepare(found.rows), clipped, atol=0.51 / 127.5)
    with np.load(folder / "samples.npz") as exact:
        np.testing.assert_array_equal(exact["x"], x[:5])
        assert json.loads(str(exact["record"])) == RECORD
    assert to.says(5) == f"a picture of each in {folder}"


def test_vectors_are_arrays_alone(tmp_path):
    x = X[:, 0, :2, 0]
    write(target(tmp_path / "x.npz", (2,)), x)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    assert read_samples(tmp_path / "x.npz").value_range == "none"


@pytest.mark.parametrize("out", ["x.pt", "x.gif", "x.NPZ", "x.v1"])
def test_other_endings_are_refused(tmp_path, out):
    with pytest.raises(ValueError, match=r"out must end in \.npz, \.npy, \.png"):
        target(tmp_path / out, (4, 4, 3))


@pytest.mark.parametrize("out", ["x.png", "x", "x/"])
def test_pictures_of_what_is_none_are_refused(tmp_path, out):
    with pytest.raises(ValueError, match=r"samples of shape \(2,\) are none.*--out="):
        target(f"{tmp_path}/{out}", (2,))


def test_files_of_others_are_not_written_over(tmp_path):
    np.savez(tmp_path / "real.npz", images=X)
    with pytest.raises(ValueError, match="real.npz, which is there and holds images"):
        target(tmp_path / "real.png", (4, 4, 3))
    (tmp_path / "photos").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "photos" / "me.png")
    with pytest.raises(ValueError, match="not empty and holds no samples of ours"):
        target(tmp_path / "photos", (4, 4, 3))
    np.savez(tmp_path / "old.npz", x=X, label=LABELS)
    assert target(tmp_path / "old.png", (4, 4, 3)).arrays.name == "old.npz"


def test_the_grid_alone_is_no_sample(tmp_path):
    for name in ("x.png", "x.jpg"):
        write(target(tmp_path / name, X.shape[1:]), X)
        (tmp_path / "x.npz").unlink()
        with pytest.raises(ValueError, match="a picture of samples that lie in x.npz"):
            read_samples(tmp_path / name)


def test_a_record_that_is_none_is_left_out(tmp_path):
    np.savez(tmp_path / "x.npz", x=X, record=np.str_("[1"))
    np.save(tmp_path / "y.npy", X)
    (tmp_path / "y.npy.json").write_text('{"record": 3}')
    for name in ("x.npz", "y.npy"):
        assert read_samples(tmp_path / name).record == {}


@pytest.mark.parametrize("length", [3, 249, 251])
def test_batches_lie_beside_names_of_any_length(tmp_path, length):
    path = tmp_path / ("s" * length + ".npz")
    parts_of(path).mkdir()
    assert parts_of(path).name.endswith(".parts")
    assert (parts_of(path).name == f"{path.name}.parts") == (length < 246)
    write(target(path, X.shape[1:]), X)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_range_follows_from_the_shape_unless_it_is_said():
    assert range_of((8, 8, 3)) == range_of((4, 8, 8, 1)) == "[-1, 1]"
    assert range_of((2,)) == range_of((8, 8, 4)) == "none"
    assert range_of((8, 8, 3), False) == "none"
    assert range_of((8, 8, 4), True) == "[-1, 1]"


def test_more_samples_than_a_grid_shows():
    to = sample_files.Target("x.npz", "x.png")
    assert to.says(12) == "a picture of them in x.png"
    assert to.says(101) == "a picture of the first 100 in x.png"
