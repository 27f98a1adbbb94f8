"""Files are whole or absent, on local disk and in a bucket."""

import os

import numpy as np
import pytest
from etils import epath

from distilljax import storage
from distilljax.storage import write_atomic


def test_write_atomic_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    assert write_atomic(path, "old") == path
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["b.txt"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_atomic(path, "old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    if request.param == "disk":
        return epath.Path(tmp_path)
    return epath.Path(request.getfixturevalue("bucket"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_in_both_places(place):
    path = place / "a" / "b.txt"
    for text in ("old", b"new"):
        assert os.fspath(write_atomic(path, text)) == os.fspath(path)
    assert path.read_text() == "new"
    assert names(path.parent) == ["b.txt"]
    storage.save_npz(place / "a" / "x.npz", {"a": np.arange(3)}, compressed=True)
    with (place / "a" / "x.npz").open("rb") as file, np.load(file) as found:
        np.testing.assert_array_equal(found["a"], [0, 1, 2])


def test_an_error_while_writing_leaves_what_was_there(place):
    path = place / "b.txt"
    write_atomic(path, "old")

    def broken():
        with storage.replacing(path) as file:
            file.write(b"ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        broken()
    assert path.read_text() == "old"
    assert names(place) == ["b.txt"]


def test_lines_are_appended_in_both_places(place):
    path = place / "run" / "lines.txt"
    lines = storage.Appender(path, "0\n")
    lines.write("1\n")
    lines.write("2\n")
    lines.close()
    assert path.read_text() == "0\n1\n2\n"


def test_a_bucket_is_rewritten_now_and_then(bucket, monkeypatch):
    path = epath.Path(bucket) / "lines.txt"
    lines = storage.Appender(path)
    lines.write("1\n")
    assert path.read_text() == ""
    monkeypatch.setattr(storage, "REWRITE_SECONDS", 0.0)
    lines.write("2\n")
    assert path.read_text() == "1\n2\n"


def test_absolute_leaves_buckets_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.fspath(storage.absolute("a/b")) == str(tmp_path / "a" / "b")
    assert os.fspath(storage.absolute("gs://a/b")) == "gs://a/b"
