"""Files of any origin are read as what they are, or refused with what to do."""

import numpy as np
import pytest

from distilljax.evaluation import (
    Moments,
    make_samples,
    read_reference,
    read_samples,
    save_statistics,
)
from distilljax.evaluation.samples import RECORD, describe, detect_range, parse_range

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
SIGNED = (BYTES / 127.5 - 1).astype(np.float32)


@pytest.mark.parametrize("key", ["x", "x0", "samples", "images", "arr_0"])
@pytest.mark.parametrize("label", ["label", "labels", "cond", "arr_1"])
def test_keys_of_samples_and_labels(tmp_path, key, label):
    np.savez(tmp_path / "a.npz", **{key: BYTES, label: np.arange(20)})
    found = read_samples(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.rows, BYTES)
    np.testing.assert_array_equal(found.labels, np.arange(20))


@pytest.mark.parametrize(
    ("rows", "value_range"),
    [
        (BYTES, "[0, 255]"),
        (BYTES.astype(np.int64), "[0, 255]"),
        (BYTES.astype(np.float32), "[0, 255]"),
        (BYTES / 255.0, "[0, 1]"),
        (SIGNED, "[-1, 1]"),
        (SIGNED.astype(np.float16), "[-1, 1]"),
    ],
)
def test_every_encoding_of_one_image_is_one_image(rows, value_range):
    found = make_samples(rows)
    assert found.value_range == value_range
    np.testing.assert_allclose(next(found.chunks()), SIGNED, atol=1e-6)
    assert found.fingerprint == make_samples(BYTES).fingerprint
    assert found.clipped == 0


def test_rounding_is_that_of_a_saved_picture():
    rows = SIGNED + RNG.uniform(-0.4, 0.4, SIGNED.shape) / 127.5
    rounded = make_samples(rows)
    np.testing.assert_allclose(next(rounded.chunks()), SIGNED, atol=1e-6)
    kept = make_samples(rows, rounding="none", value_range="[-1, 1]")
    np.testing.assert_allclose(next(kept.chunks()), np.clip(rows, -1, 1), atol=1e-6)
    assert kept.fingerprint != rounded.fingerprint


def test_overshooting_samples_are_clipped_and_it_is_said():
    rows = SIGNED.copy()
    rows[0, 0, 0] = 1.2
    found = make_samples(rows)
    assert next(found.chunks()).max() == 1.0
    assert found.clipped == pytest.approx(3 / rows.size)
    assert "20 rows of 4 x 4 x 3, range [-1, 1], rounded to 8 bit, 0.31 %" in describe(
        found
    )


@pytest.mark.parametrize(
    "rows",
    [
        np.full((5, 4, 4, 1), 0.5),  # grey in [0, 1], or in [-1, 1]
        RNG.uniform(0, 0.6, (5, 4, 4, 1)),
        RNG.uniform(0, 1.5, (5, 4, 4, 1)),
        RNG.uniform(-0.1, 1.1, (5, 4, 4, 1)),  # [0, 1] that overshoots
        RNG.uniform(0, 200, (5, 4, 4, 1)),  # no whole numbers
        RNG.normal(0, 2, (5, 4, 4, 1)),
    ],
)
def test_doubtful_ranges_are_refused_until_they_are_said(rows):
    with pytest.raises(ValueError, match=r"fit no range without doubt; .*--range"):
        detect_range(rows)
    assert make_samples(rows, value_range="[-1, 1]").value_range == "[-1, 1]"


def test_vectors_and_unbounded_data_are_kept():
    points = 5 * RNG.normal(size=(9, 2))
    found = make_samples(points)
    assert (found.value_range, found.rounding) == ("none", "none")
    np.testing.assert_allclose(next(found.chunks()), points, rtol=1e-6)
    latents = make_samples(RNG.normal(size=(3, 4, 4, 4)), value_range="none")
    assert latents.rounding == "none"


def test_grey_images_without_a_channel_get_one():
    assert make_samples(BYTES[..., 0]).rows.shape == (20, 4, 4, 1)


def test_memory_mapped_arrays_are_read_in_parts(tmp_path):
    np.save(tmp_path / "a.npy", np.repeat(BYTES, 120, 0))
    found = read_samples(tmp_path / "a.npy")
    assert isinstance(found.rows, np.memmap)
    assert [len(rows) for rows in found.chunks()] == [1024, 1024, 352]


def test_statistics_come_back(tmp_path):
    moments = Moments.of(RNG.normal(size=(30, 5)))
    save_statistics(tmp_path / "s.npz", moments, {"features": "pixels"})
    with pytest.raises(ValueError, match="missing: count, features_fingerprint"):
        read_reference(tmp_path / "s.npz")
    protocol = dict.fromkeys(RECORD, "x") | {"features": "pixels"}
    save_statistics(tmp_path / "s.npz", moments, protocol)
    found = read_reference(tmp_path / "s.npz")
    assert found.protocol == protocol
    assert found.moments.count == 30
    np.testing.assert_allclose(found.moments.covariance, moments.covariance)
    assert "statistics of 5 features by pixels" in describe(found)
    # As pytorch-fid and others write them.
    np.savez(tmp_path / "o.npz", mu=moments.mean, sigma=moments.covariance)
    found = read_reference(tmp_path / "o.npz")
    np.testing.assert_allclose(found.moments.covariance, moments.covariance)
    assert not found.protocol
    assert "not recorded" in describe(found)
    np.savez(tmp_path / "o.npz", mu=moments.mean, sigma=moments.mean)
    with pytest.raises(ValueError, match=r"covariance \[D, D\], got \(5,\)"):
        read_reference(tmp_path / "o.npz")
    with pytest.raises(ValueError, match="holds reference statistics .*samples under"):
        read_samples(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": BYTES}, r"holds no samples \(y\): write .* x, x0, samples"),
        ({"x": BYTES[0, 0, 0]}, r"\[N, H, W, C\] or \[N, D\], got uint8 \(3,\)"),
        ({"x": BYTES[:0]}, r"got uint8 \(0, 4, 4, 3\)"),
        ({"x": np.array([["a"]])}, "must be numbers"),
        ({"x": np.full((2, 3, 8, 8), 0.0)}, r"channels first; transpose"),
        ({"x": np.where(BYTES == 7, np.nan, SIGNED)}, "finite, got [0-9]+ NaN"),
        ({"x": BYTES, "label": np.arange(19)}, "labels must have shape"),
    ],
)
def test_bad_files_are_named(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        read_samples(path)
    assert "bad.npz" in str(error.value)


def test_no_file_and_no_array(tmp_path):
    with pytest.raises(ValueError, match="no file at .*none.npz"):
        read_samples(tmp_path / "none.npz")
    (tmp_path / "a.npz").write_text("nonsense")
    with pytest.raises(ValueError, match=r"a.npz is damaged .*np.savez"):
        read_samples(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="unknown rounding 'unit8'.*'uint8'"):
        make_samples(BYTES, rounding="unit8")
    with pytest.raises(ValueError, match=r"8-bit .* \[0, 255\], got \[0, 1\]"):
        make_samples(BYTES, value_range="[0, 1]")
    with pytest.raises(ValueError, match="unknown range '-1;1'.*'-1,1'"):
        parse_range("-1;1")
    assert parse_range("[-1, 1]") == parse_range("-1,1") == "[-1, 1]"
    assert parse_range(None) is None


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"mu": np.full(3, np.nan)}, "mean must be finite numbers, got 3 values of 3"),
        ({"sigma": np.full((3, 3), np.inf)}, "covariance must be finite"),
        ({"sigma": -np.eye(3)}, "no negative eigenvalues, got -1"),
        ({"sigma": np.triu(np.ones((3, 3)))}, "must be symmetric"),
        ({"count": np.int64(1)}, "count must be the number of rows"),
        ({"count": np.float64(np.nan)}, "count must be the number of rows"),
        ({"count": np.array([5, 6])}, "count must be the number of rows"),
    ],
)
def test_statistics_that_are_none_are_refused_by_name(tmp_path, statistics, message):
    found = {"mu": np.zeros(3), "sigma": np.eye(3)} | statistics
    np.savez(tmp_path / "bad.npz", **found)
    with pytest.raises(ValueError, match=rf"bad.npz: .*{message}"):
        read_reference(tmp_path / "bad.npz")


def test_statistics_may_be_rounded(tmp_path):
    """Float32 and more features than rows: eigenvalues a little below 0."""
    moments = Moments.of(RNG.normal(size=(6, 20)))
    sigma = moments.covariance.astype(np.float32)
    np.savez(tmp_path / "f.npz", mu=moments.mean.astype(np.float32), sigma=sigma)
    found = read_reference(tmp_path / "f.npz").moments
    np.testing.assert_allclose(found.covariance, moments.covariance, atol=1e-5)
