"""Files are whole or absent, on local disk and in a bucket."""

import errno
import io
import os
import pathlib
import zipfile

import numpy as np
import pytest
from etils import epath

from distilljax import storage
from distilljax.runtime.storage import write_atomic


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


def test_a_file_and_a_folder_in_each_others_place_are_named(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match="file/a.txt' could not .* choose another place"):
        write_atomic(tmp_path / "file" / "a.txt", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder' could not be .* choose another name"):
        write_atomic(tmp_path / "folder", "new")
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_closed_folder_is_named(number, tmp_path):
    words = "x.txt' could not be written.*is intact; make it writable or choose another"
    with pytest.raises(OSError, match=words), storage.naming(tmp_path / "x.txt"):
        raise OSError(number, os.strerror(number))


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


def _crafted(folder, name, head, raw=b""):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, head)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("x.npy", out.getvalue() + raw)
    return folder / name


def _damaged(folder):
    """Files that are damaged, or made to harm."""
    path = folder / "zlib.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(200, 4)))
    raw = bytearray(path.read_bytes())
    raw[120:400] = bytes(b ^ 0xFF for b in raw[120:400])
    path.write_bytes(raw)
    yield path
    (folder / "garbage.npz").write_bytes(b"PK\x03\x04" + bytes(500))
    yield folder / "garbage.npz"
    head = {"descr": "<f4", "fortran_order": False, "shape": (10**13, 4)}
    yield _crafted(folder, "huge.npz", head)
    path = _crafted(folder, "token.npz", {**head, "shape": (4, 4)}, bytes(64))
    path.write_bytes(path.read_bytes().replace(b"(4, 4), }", b"(4, 4(, }"))
    yield path
    path = folder / "locked.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"abc")
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    yield path
    (folder / "empty.npy").write_bytes(b"")
    yield folder / "empty.npy"


def test_damaged_arrays_are_named(tmp_path):
    for path in _damaged(tmp_path):
        with pytest.raises(ValueError, match=path.stem):
            storage.load_arrays(path)


def test_arrays_of_objects_are_named_and_others_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(2), names=np.array(["a", None], dtype=object))
    assert set(storage.load_arrays(path, ("x",))) == {"x"}
    with pytest.raises(ValueError, match="'names' is an array of Python objects"):
        storage.load_arrays(path)


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.load_arrays(tmp_path / "gone.npz")


def test_two_writers_of_one_file_use_two_drafts(tmp_path):
    path = tmp_path / ("s" * 251 + ".npz")
    with storage.whole(path) as first, storage.whole(path) as second:
        assert first != second
        for name in (first, second):
            pathlib.Path(name).write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
