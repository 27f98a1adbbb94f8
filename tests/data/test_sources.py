"""Sources: contents, checks at the start, equality."""

import jax
import numpy as np
import pytest

from distilljax import data


def images(n=6):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (n, 4, 4, 1)).astype(np.float32)


def test_digits_are_the_bundled_data_in_range():
    from sklearn.datasets import load_digits

    source, table = data.digits(), load_digits()
    assert len(source) == 1797
    assert source.sample_shape == (8, 8, 1)
    assert source.num_classes == 10
    assert source.fields == ("x0", "cond")
    batch = source.take(np.arange(1797))
    assert batch["x0"].dtype == np.float32
    assert batch["cond"].dtype == np.int32
    assert batch["x0"].min() == -1.0
    assert batch["x0"].max() == 1.0
    np.testing.assert_array_equal((batch["x0"][..., 0] + 1) * 8, table.images)
    np.testing.assert_array_equal(batch["cond"], table.target)


def test_coloured_digits_are_digits_times_one_colour_each():
    plain, source = data.digits(), data.coloured_digits(2, seed=3)
    assert len(source) == 2 * 1797
    assert source.sample_shape == (8, 8, 3)
    ink = (plain.columns["x0"][..., 0] + 1) / 2
    tinted = (source.columns["x0"] + 1) / 2
    np.testing.assert_array_equal(source.columns["cond"][1797:], plain.columns["cond"])
    # Every pixel is the ink times a colour whose largest channel is 1.
    np.testing.assert_allclose(tinted.max(axis=-1), np.tile(ink, (2, 1, 1)), atol=1e-6)
    full = tinted.max(axis=(1, 2)) / tinted.max(axis=(1, 2, 3))[:, None]
    wanted = full[:, None, None, :] * tinted.max(axis=-1, keepdims=True)
    np.testing.assert_allclose(tinted, wanted, atol=1e-6)
    low = full.min(axis=-1)
    assert 0.1 - 1e-6 < low.min() < 0.11
    assert 0.39 < low.max() < 0.4 + 1e-6
    # All hues alike: the channels have one mean.
    assert np.ptp(full.mean(axis=0)) < 0.03
    assert source == data.coloured_digits(2, seed=3)
    assert source != data.coloured_digits(2, seed=4)
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        data.coloured_digits(0)


def test_take_equals_items_and_returns_copies():
    source = data.arrays(images(), np.arange(6) % 3, eps=images() * 2)
    indices = np.array([4, 0, 4])
    batch = source.take(indices)
    for i, index in enumerate(indices):
        for field, value in source[int(index)].items():
            np.testing.assert_array_equal(batch[field][i], value)
    before = source.fingerprint
    batch["x0"][:] = 0
    source[0]["x0"][:] = 0
    assert data.ArraySource(source.columns, 3).fingerprint == before


def test_equal_contents_are_equal_values():
    a, b = data.arrays(images(), name="a"), data.arrays(images(), name="b")
    assert a == b
    assert hash(a) == hash(b)
    assert a.fingerprint == b.fingerprint
    changed = images()
    changed[5, 3, 3, 0] *= 0.5
    for other in (
        data.arrays(changed),
        data.arrays(images()[:5]),
        data.arrays(images(), np.zeros(6, int)),
        data.arrays(images(), w=np.ones(6, np.float32)),
    ):
        assert other != a
        assert other.fingerprint != a.fingerprint
    labels = np.zeros(6, int)
    assert data.arrays(images(), labels, num_classes=2) != data.arrays(images(), labels)


def test_accepts_vectors_latents_embeddings_and_device_arrays():
    vectors = data.arrays(10 * np.random.default_rng(0).normal(size=(6, 2)))
    assert vectors.columns["x0"].dtype == np.float32
    assert data.arrays(5 * images(), images=False).sample_shape == (4, 4, 1)
    source = data.arrays(jax.numpy.asarray(images()), np.ones((6, 3)))
    assert source.num_classes is None
    assert source[0]["cond"].shape == (3,)
    half = jax.numpy.zeros((6, 4, 4, 1), "bfloat16")
    assert data.arrays(half).columns["x0"].dtype == np.float32


def test_a_memory_mapped_file_stays_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", images())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    column = data.arrays(mapped).columns["x0"]
    assert np.shares_memory(column, mapped)


def with_nan():
    x = images()
    x[1, 0, 0, 0] = np.nan
    x[2, 0, 0, 0] = np.inf
    return x


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((images() * 8 + 8,), {}, r"x0: images must lie in \[-1, 1\].*0\.\d+ to 1"),
        ((np.zeros((6, 4, 4, 1), np.uint8),), {}, r"x0 must be floating.*127\.5"),
        ((images()[..., 0],), {}, r"channel axis"),
        ((images()[..., 0],), {"images": True}, r"channel axis"),
        ((np.zeros(6),), {}, r"x0 must be \[N, d\]"),
        ((np.zeros((6, 2)),), {"images": True}, r"images must be \[N, H, W, C\]"),
        ((with_nan(),), {}, r"x0 must be finite, got 2 NaN"),
        ((images()[:0],), {}, r"at least one sample"),
        ((None,), {}, r"x0 must be an array of numbers"),
        ((images(), np.array([0, 1, 2, -1, 0, 0])), {}, r"labels must lie in.*-1 to 2"),
        ((images(), np.arange(6)), {"num_classes": 5}, r"0 \.\. 4, got 0 to 5"),
        ((images(), np.arange(5)), {}, r"cond must have one row per sample.*6.*5"),
        ((images(), np.zeros((6, 1), int)), {}, r"squeeze"),
        ((images(), np.ones((6, 2))), {"num_classes": 3}, r"needs integer labels"),
        ((images(), np.zeros(6, bool)), {}, r"integer labels or float"),
        ((images(), np.array(list("abcdef"))), {}, r"cond must be an array of numbers"),
        ((images(),), {"num_classes": 3}, r"needs labels as cond, got None"),
        ((images(),), {"eps": images(3)}, r"eps must have one row"),
        ((images(),), {"eps": with_nan()}, r"eps must be finite"),
    ],
)
def test_refuses_bad_arrays_at_the_start(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        data.arrays(*args, **kwargs)


@pytest.mark.parametrize("layout", ["ring", "grid", "random"])
def test_mixture_samples_follow_the_mixture(layout):
    components = 9
    law = data.planar_mixture(layout, components=components, seed=3)
    source = data.mixture(layout, components=components, seed=3, size=40000)
    x0, cond = source.columns["x0"], source.columns["cond"]
    assert source.num_classes == components
    share = data.label_counts(cond, components) / len(source)
    np.testing.assert_allclose(share, law.weights, atol=0.01)
    for k in range(components):
        own = x0[cond == k]
        np.testing.assert_allclose(own.mean(0), law.means[k], atol=0.01)
        np.testing.assert_allclose(own.std(0), law.std, rtol=0.06)
    assert source == data.mixture(layout, components=components, seed=3, size=40000)
    assert source != data.mixture(layout, components=components, seed=4, size=40000)


def test_mixture_layouts():
    ring = data.planar_mixture("ring", components=4, radius=2.0).means
    np.testing.assert_allclose(ring, [[2, 0], [0, 2], [-2, 0], [0, -2]], atol=1e-12)
    grid = data.planar_mixture("grid", components=4, radius=1.0).means
    assert {tuple(m) for m in grid} == {(-1, -1), (-1, 1), (1, -1), (1, 1)}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layout": "rings"}, r"unknown layout 'rings'. Did you mean 'ring'"),
        ({"layout": "grid", "components": 8}, r"square number, got 8"),
        ({"components": 0}, r"components must be at least 1"),
        ({"std": 0.0}, r"std positive"),
        ({"size": 0}, r"size must be at least 1"),
    ],
)
def test_mixture_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        data.mixture(**kwargs)


def test_labels_that_are_no_classes_are_refused():
    x0 = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="renumber them"):
        data.arrays(x0, np.array([0, 2**40], np.uint64))
