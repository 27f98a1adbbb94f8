"""Sources from files."""

import numpy as np
import pytest

from distilljax.data import files, npz


def test_a_file_is_what_was_saved(tmp_path):
    x0 = np.random.default_rng(0).uniform(-1, 1, (6, 4, 4, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x0=x0, cond=np.arange(6) % 3)
    source = npz(tmp_path / "a.npz", sample_shape=(4, 4, 3), num_classes=5)
    assert source.sample_shape == (4, 4, 3)
    assert source.num_classes == 5
    taken = source.take(np.array([1, 4]))
    np.testing.assert_array_equal(taken["x0"], x0[[1, 4]])
    np.testing.assert_array_equal(taken["cond"], [1, 1])


def test_latents_have_no_range(tmp_path):
    np.savez(tmp_path / "a.npz", x0=np.full((2, 4, 4, 4), 9.0, np.float32))
    assert len(npz(tmp_path / "a.npz", sample_shape=(4, 4, 4), images=False)) == 2
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        npz(tmp_path / "a.npz", sample_shape=(4, 4, 4))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (None, r"no data at .*write x0 \[N, 4, 4, 3\]"),
        ({"x": np.zeros((2, 4, 4, 3), np.float32)}, "must hold 'x0', it has .'x'"),
        ({"x0": np.zeros((2, 4, 4, 1), np.float32)}, r"got \(2, 4, 4, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, saved, message):
    if saved is not None:
        np.savez(tmp_path / "a.npz", **saved)
    with pytest.raises(ValueError, match=message):
        npz(tmp_path / "a.npz", sample_shape=(4, 4, 3))


def test_the_fields_of_a_student_are_named_where_a_file_is_of_another_kind(tmp_path):
    names, who = ("cond", "y"), "this student (scm)"
    np.savez(tmp_path / "a.npz", y=np.ones((2, 3)), more=np.ones(2))
    np.savez(tmp_path / "b.npz", y=np.ones((2, 3)), cond=np.ones((2, 4)))
    np.save(tmp_path / "c.npy", np.ones((2, 4)))
    (tmp_path / "d.png").write_bytes(b"")
    found = files.read_fields(tmp_path / "b.npz", names, who)
    assert {name: x.shape for name, x in found.items()} == {"y": (2, 3), "cond": (2, 4)}
    found = files.read_fields(tmp_path / "c.npy", names[:1], who)
    assert found["cond"].shape == (2, 4)
    for name, words in (
        ("a.npz", "must hold 'cond', 'y', which this student .* it has more, y;"),
        ("c.npy", "c.npy is a file .npy: this student .* reads the fields 'cond', 'y'"),
        ("d.png", r"np.savez\(path, cond=..., y=...\)"),
        ("none.npz", "is not there"),
        ("", "is a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            files.read_fields(tmp_path / name, names, who)
    with pytest.raises(ValueError, match="reads no data .* leave --data out"):
        files.read_fields(tmp_path / "b.npz", (), who)
