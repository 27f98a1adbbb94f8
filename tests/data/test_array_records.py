"""ArrayRecord folders give back what was written, row by row."""

import json

import numpy as np
import pytest

from distilljax import data
from distilljax.data import array_records


def images(n=10, size=4):
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3))
    x0 = pixels.astype(np.uint8).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return data.arrays(x0, np.arange(n) % 3, num_classes=4)


def same(source, wanted, indices):
    indices = np.asarray(indices)
    found, expected = source.take(indices), wanted.take(indices)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("shards", [1, 3, 10])
def test_a_folder_is_the_source(tmp_path, shards):
    source = images()
    data.write_records(source, tmp_path / "a", shards=shards)
    found = data.records(tmp_path / "a", sample_shape=(4, 4, 3))
    assert len(found) == 10
    assert (found.sample_shape, found.num_classes) == ((4, 4, 3), 4)
    assert found.fields == source.fields
    same(found, source, range(10))
    same(found, source, [7, 7, 0, 9, 3])
    item = found[8]
    np.testing.assert_array_equal(item["x0"], source[8]["x0"])
    assert item["cond"] == source[8]["cond"]
    # 8-bit images are found out and stored as bytes.
    about = json.loads((tmp_path / "a" / "data.json").read_text())
    assert about["fields"]["x0"]["dtype"] == "uint8"
    assert len(list((tmp_path / "a").glob("*.array_record"))) == shards


def test_a_record_is_what_the_format_says(tmp_path):
    source = images(3)
    folder = data.write_records(source, tmp_path / "a")
    from array_record.python.array_record_module import ArrayRecordReader

    raw = ArrayRecordReader(str(folder / "part-00000-of-00001.array_record")).read([1])
    pixels = np.rint((source[1]["x0"] + 1) * 127.5).astype(np.uint8)
    assert raw[0] == pixels.tobytes() + np.int32(1).tobytes()


def test_latents_and_further_fields_keep_their_values(tmp_path):
    rng = np.random.default_rng(1)
    x0, eps = rng.normal(size=(2, 7, 2, 2, 4)).astype(np.float32) * 3
    source = data.arrays(x0, rng.normal(size=(7, 5)), images=False, eps=eps)
    data.write_records(source, tmp_path / "a", shards=2)
    for found in (source, data.records(tmp_path / "a", flip=True)):
        assert found.cond_features == 5
    same(data.records(tmp_path / "a"), source, [6, 2, 4])
    data.write_records(source, tmp_path / "half", x0="float16")
    found = data.records(tmp_path / "half").take(np.arange(7))
    np.testing.assert_array_equal(found["x0"], x0.astype(np.float16))
    np.testing.assert_array_equal(found["eps"], eps)


def test_contents_decide_the_fingerprint(tmp_path):
    a, b = images(), images()
    b.columns["x0"][9, 0, 0, 0] *= 0.5
    for name, source, shards in (("a", a, 2), ("b", a, 2), ("c", b, 2)):
        data.write_records(source, tmp_path / name, shards=shards, x0="float32")
    prints = [data.records(tmp_path / name).fingerprint for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_a_pattern_takes_some_shards(tmp_path):
    source = images()
    data.write_records(source, tmp_path / "a", shards=5)
    found = data.records(tmp_path / "a" / "part-0000[13]*")
    assert len(found) == 4
    got = found.take(np.arange(4))["x0"]
    np.testing.assert_array_equal(got, source.columns["x0"][[2, 3, 6, 7]])
    assert found.fingerprint != data.records(tmp_path / "a").fingerprint
    with pytest.raises(ValueError, match="unknown shard 'part-9.*'.*part-00000-of"):
        data.records(tmp_path / "a" / "part-9*")


def test_a_source_without_take_is_written_too(tmp_path):
    class Items:
        name, sample_shape, num_classes = "items", (2,), None
        fields, fingerprint = ("x0",), "items"

        def __len__(self):
            return 5

        def __getitem__(self, index):
            return {"x0": np.full(2, index, np.float32)}

    data.write_records(Items(), tmp_path / "a", shards=2)
    rows = data.records(tmp_path / "a").take(np.arange(5))["x0"]
    np.testing.assert_array_equal(rows[:, 0], np.arange(5))


def test_mirror_images_are_asked_for_by_an_option(tmp_path):
    source = images()
    data.write_records(source, tmp_path / "a")
    np.savez(tmp_path / "a.npz", x0=source.columns["x0"])
    for found in (
        data.records(tmp_path / "a", flip=True),
        data.npz(tmp_path / "a.npz", sample_shape=(4, 4, 3), flip=True),
    ):
        assert len(found) == 20
        rows = found.take(np.array([13, 3]))["x0"]
        np.testing.assert_array_equal(rows[0], source.columns["x0"][3, :, ::-1])
        np.testing.assert_array_equal(rows[1], source.columns["x0"][3])


def test_writing_refuses(tmp_path):
    source = images()
    with pytest.raises(ValueError, match="must have samples x0 to be written"):
        data.write_records(data.labels(3, (2,)), tmp_path / "labels")
    folder = data.write_records(source, tmp_path / "a")
    with pytest.raises(ValueError, match="holds records already; remove it"):
        data.write_records(source, folder)
    with pytest.raises(ValueError, match="shards must lie between 1 and the 10"):
        data.write_records(source, tmp_path / "b", shards=11)
    with pytest.raises(ValueError, match="unknown type of x0 'int8'"):
        data.write_records(source, tmp_path / "b", x0="int8")
    latents = data.arrays(3 * source.columns["x0"], images=False)
    wrong = np.flatnonzero(np.abs(latents.columns["x0"]).max((1, 2, 3)) > 1)[0]
    with pytest.raises(ValueError, match=rf"\[-1, 1\], sample {wrong} does not"):
        data.write_records(latents, tmp_path / "b", x0="uint8")
    # What broke off is no data set.
    with pytest.raises(ValueError, match="no records in"):
        data.records(tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())


def test_reading_refuses(tmp_path):
    folder = data.write_records(images(), tmp_path / "a", shards=2)
    with pytest.raises(ValueError, match=r"must have shape \(8, 8, 3\), got \(4, 4, 3"):
        data.records(folder, sample_shape=(8, 8, 3))
    with pytest.raises(ValueError, match="num_classes=3: .* has 4 classes"):
        data.records(folder, num_classes=3)
    with pytest.raises(ValueError, match="no pairs of a teacher; .*distilljax pairs"):
        data.pairs(folder)
    (folder / "part-00001-of-00002.array_record").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 2 shards, the first part-00001"):
        data.records(folder)
    path = folder / array_records.DESCRIPTION
    path.write_text(path.read_text().replace("records 1", "records 9"))
    with pytest.raises(ValueError, match="must be 'distilljax records 1'"):
        data.records(folder)


def test_a_damaged_shard_is_named_with_the_sample(tmp_path):
    folder = data.write_records(images(100), tmp_path / "a")
    path = folder / "part-00000-of-00001.array_record"
    raw = bytearray(path.read_bytes())
    raw[3000:3600] = bytes(600)
    path.write_bytes(bytes(raw))
    it = data.batches(data.records(folder), batch_size=100, shuffle=False)
    with pytest.raises(
        ValueError, match=r"source records .*: samples? \d+.* cannot be"
    ):
        next(it)
    it.close()
