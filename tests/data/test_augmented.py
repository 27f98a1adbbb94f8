"""EDM's augmentation against its released code, and in the stream of the pipeline."""

import pathlib

import jax
import numpy as np
import pytest

from distilljax import data, specs
from distilljax.data.augmented import COUNTS, SCALE_STD, warped
from distilljax.networks import unet

# Images, drawn changes and the result of NVlabs/edm 008a4e5, training/augment.py.
OFFICIAL = pathlib.Path(__file__).parent / "edm_augment.npz"


def pictures(count=12, size=8, classes=3):
    rng = np.random.default_rng(0)
    x0 = rng.uniform(-1.0, 1.0, (count, size, size, 3)).astype(np.float32)
    return data.arrays(x0, np.arange(count) % classes, num_classes=classes)


def test_images_and_numbers_are_those_of_the_released_code():
    with np.load(OFFICIAL) as file:
        drawn = {k[6:]: file[k] for k in file.files if k.startswith("drawn.")}
        augmentation = data.Augmentation(1.0)
        changed = augmentation.apply(file["images"], drawn)
        np.testing.assert_allclose(changed, file["changed"], atol=5e-5)
        told = augmentation.numbers(drawn)
        np.testing.assert_allclose(told, file["told"], atol=1e-6)
    assert told.shape == (8, augmentation.features) == (8, 9)


def test_a_warp_by_whole_pixels_moves_them():
    images = np.random.default_rng(1).normal(size=(1, 8, 8, 1)).astype(np.float32)
    still = warped(images, np.eye(2)[None], np.zeros((1, 2)))
    np.testing.assert_allclose(still, images, atol=1e-5)
    # The result shows at (x, y) what the image has at (x + 2, y - 1).
    moved = warped(images, np.eye(2)[None], np.asarray([[2.0, -1.0]]))
    np.testing.assert_allclose(moved[:, 1:, :-2], images[:, :-1, 2:], atol=1e-5)


@pytest.mark.parametrize("kind", list(COUNTS))
def test_zeros_are_told_of_what_did_not_change(kind):
    augmentation = data.Augmentation(0.3, (kind,))
    drawn = augmentation.draw(5, np.arange(400))
    told = augmentation.numbers(drawn)
    assert told.shape == (400, COUNTS[kind] if kind != "mirror" else 1)
    share = np.mean((told != 0).any(1))
    expected = {"mirror": 0.5, "flip": 0.15}.get(kind, 0.3)
    assert share == pytest.approx(expected, abs=0.08)
    images = np.random.default_rng(2).normal(size=(400, 4, 4, 1)).astype(np.float32)
    changed = (augmentation.apply(images, drawn) != images).any((1, 2, 3))
    np.testing.assert_array_equal(changed, (told != 0).any(1))


def test_scales_have_the_released_spread():
    drawn = data.Augmentation(1.0, ("scale",)).draw(0, np.arange(2000))["scale"]
    assert np.std(drawn) == pytest.approx(1.0, rel=0.1)
    assert SCALE_STD == 0.2


def test_the_stream_changes_anew_at_every_place_and_can_be_resumed():
    source = data.augmented(pictures(), data.Augmentation(1.0))
    args = {"batch_size": 12, "seed": 3, "prefetch": 0}
    stream = data.batches(source, **args)
    first, second = next(stream), next(stream)
    assert first["cond"]["augment"].shape == (1, 1, 12, 9)
    assert set(first["cond"]) == {"augment", "label"}
    # Two epochs: the same images, changed otherwise.
    order = [np.argsort(b["cond"]["label"][0, 0]) for b in (first, second)]
    assert not np.allclose(first["x0"][0, 0][order[0]], second["x0"][0, 0][order[1]])
    again = data.batches(source, offset=12, **args)
    jax.tree.map(np.testing.assert_array_equal, next(again), second)
    half = data.batches(source, process_index=1, process_count=2, **args)
    np.testing.assert_array_equal(next(half)["x0"], first["x0"][:, :, 6:])


def test_read_in_order_it_is_the_source_itself():
    plain = pictures()
    source = data.augmented(plain, data.Augmentation())
    rows = np.arange(4)
    jax.tree.map(np.testing.assert_array_equal, source.take(rows), plain.take(rows))
    ordered = next(data.batches(source, batch_size=4, shuffle=False, prefetch=0))
    np.testing.assert_array_equal(ordered["x0"][0, 0], plain.take(rows)["x0"])
    assert source.fields == plain.fields
    assert source.num_classes == 3
    assert source.fingerprint != plain.fingerprint
    assert data.augmented(plain, None) is plain


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"in \(0, 1\], got 0.0; for none leave"):
        data.Augmentation(0.0)
    with pytest.raises(ValueError, match="unknown augmentation 'scales'.*'scale'"):
        data.Augmentation(0.1, ("scales",))
    with pytest.raises(ValueError, match=r"square images.*got samples of shape \(2,\)"):
        data.augmented(data.arrays(np.ones((3, 2))), data.Augmentation())
    assert specs.parse("Augmentation(0.2, ('scale',))").features == 1


def test_a_network_is_told_and_takes_a_plain_condition_for_an_unchanged_image():
    small = {"channels": 4, "multipliers": (1,), "blocks": 1, "attention_sizes": ()}
    network = unet((4, 4, 1), num_classes=3, augment_features=9, **small)
    params = network.init(jax.random.key(0))
    leaf = params["conditions"]["augment"]["kernel"]
    assert leaf.shape == (9, 16)
    assert not leaf.any()
    params = jax.tree.map(lambda a: a + 0.1, params)
    x, labels = jax.numpy.ones((2, 4, 4, 1)), jax.numpy.asarray([0, 2])
    told = {"label": labels, "augment": jax.numpy.ones((2, 9))}
    zero = {"label": labels, "augment": jax.numpy.zeros((2, 9))}
    plain = network.apply(params, x, 0.5, labels)
    np.testing.assert_allclose(network.apply(params, x, 0.5, zero), plain, rtol=1e-5)
    assert not np.allclose(network.apply(params, x, 0.5, told), plain)
    null = network.null(told)
    np.testing.assert_array_equal(null["label"], [3, 3])
    np.testing.assert_array_equal(null["augment"], told["augment"])
    np.testing.assert_array_equal(network.null(labels), [3, 3])
    other = unet((4, 4, 1), num_classes=3, **small)
    with pytest.raises(ValueError, match="build it with augment_features="):
        other.apply(other.init(jax.random.key(0)), x, 0.5, told)
    with pytest.raises(ValueError, match=r"\[B, 9\] numbers, got \(2, 6\)"):
        network.apply(params, x, 0.5, {**told, "augment": told["augment"][:, :6]})
    free = unet((4, 4, 1), augment_features=9, **small)
    assert free.null is None
    free.apply(free.init(jax.random.key(0)), x, 0.5, {"augment": told["augment"]})
