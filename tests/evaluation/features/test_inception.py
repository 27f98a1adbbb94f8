"""Inception's blocks against a second implementation, in numpy and float64."""

import jax
import numpy as np
import pytest

from distilljax.evaluation.features import inception as build
from distilljax.evaluation.features.inception import (
    BLOCKS,
    features_of,
    keys,
    resize,
    run_block,
)
from tests.evaluation.features import reference


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_matches_numpy(block):
    """Few channels, true kernels; 11 pixels a side keep borders in every window."""
    rng = np.random.default_rng(list(BLOCKS).index(block))
    weights, _ = reference.weights(rng, block, 3, shrink=48)
    side = 31 if block == "" else 11
    x = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    found = run_block(weights, block, x)
    expected = reference.run(weights, block, x.astype(np.float64).transpose(0, 3, 1, 2))
    expected = expected.transpose(0, 2, 3, 1)
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * scale)


def whole(rng, shrink=1):
    out, channels = {}, 3
    for block in BLOCKS:
        part, channels = reference.weights(rng, block, channels, shrink)
        out |= part
    classes = rng.normal(size=(1008, channels)).astype(np.float32)
    return out | {"fc.weight": classes, "fc.bias": np.zeros(1008, np.float32)}


def test_the_whole_network_has_the_published_sizes():
    class Sizes:
        """Stands in for random numbers: only shapes are asked for."""

        def normal(self, *arguments, size):
            return np.broadcast_to(np.float32(0), size)

        def uniform(self, *arguments, size):
            return np.broadcast_to(np.float32(1), size)

    weights = whole(Sizes())
    assert set(weights) == set(keys())
    assert len(weights) == 94 * 5 + 2
    assert sum(w.size for w in weights.values()) == 23_885_392
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), weights)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    found = jax.eval_shape(features_of, shapes, images)
    assert found.features.shape == (2, 2048)
    assert found.logits.shape == (2, 1008)


@pytest.mark.parametrize("sides", [(5, 4), (13, 13), (3, 20)])
def test_resizing_reads_pixel_i_at_i_times_the_ratio(sides):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, *sides, 2)).astype(np.float32)
    expected = np.empty((1, 13, 13, 2))
    for i in range(13):
        for j in range(13):
            u, v = i * sides[0] / 13, j * sides[1] / 13
            a, b = int(u), int(v)
            c, d = min(a + 1, sides[0] - 1), min(b + 1, sides[1] - 1)
            top = x[:, a, b] + (x[:, a, d] - x[:, a, b]) * (v - b)
            low = x[:, c, b] + (x[:, c, d] - x[:, c, b]) * (v - b)
            expected[:, i, j] = top + (low - top) * (u - a)
    np.testing.assert_allclose(resize(x, 13), expected, atol=2e-6)


@pytest.fixture(scope="module")
def small():
    return whole(np.random.default_rng(0), shrink=64)


def test_weights_come_from_either_kind_of_file(tmp_path, small):
    from safetensors.numpy import save_file

    extra = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)}
    save_file(small | extra, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **small)
    a, b = build(tmp_path / "w.safetensors"), build(tmp_path / "w.npz")
    assert a.fingerprint == b.fingerprint
    assert set(a.params) == set(keys())
    changed = small | {"fc.bias": small["fc.bias"] + 1}
    np.savez(tmp_path / "v.npz", **changed)
    assert build(tmp_path / "v.npz").fingerprint != a.fingerprint


def test_other_weights_are_refused(tmp_path, small):
    def refused(match, name="w.npz", **weights):
        np.savez(tmp_path / "w.npz", **weights)
        with pytest.raises(ValueError, match=match):
            build(tmp_path / name)

    refused("no weights at .*none.npz", name="none.npz")
    fewer = {k: v for k, v in small.items() if not k.startswith("Mixed_7c")}
    refused("45 are missing: Mixed_7c.branch1x1.conv.weight", **fewer)
    imagenet = small | {"fc.weight": small["fc.weight"][:1000]}
    refused("1008 classes, got 1000: torchvision's own", **imagenet)
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    refused("must be .safetensors or .npz, got w.pth", name="w.pth")
    refused("damaged", name="w.safetensors")
