"""Extractors are functions of the images alone, in any batches, on any devices."""

import jax
import numpy as np
import pytest

from distilljax.evaluation import features, moments_of
from distilljax.evaluation.features.digits import SHAPES, WEIGHTS
from distilljax.evaluation.features.train_digits import held_out, train


@pytest.mark.parametrize("text", ["pixels", "digits", "random_convolutions"])
def test_features_do_not_depend_on_the_batch(digits, text):
    x = digits[0][:37]
    extractor = features.extractor(text)
    whole = extractor(x)
    assert whole.dtype == np.float32
    assert whole.ndim == 2
    assert len(whole) == 37
    parts = extractor(x, batch_size=10)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)
    spread = extractor(x, mesh=jax.make_mesh((1,), ("data",)))
    np.testing.assert_allclose(spread, whole, rtol=0, atol=1e-5)
    assert (np.abs(whole[1:] - whole[:-1]).max(1) > 0).all()


def test_pixels_are_the_pixels(digits):
    np.testing.assert_array_equal(
        features.pixels()(digits[0]), digits[0].reshape(-1, 64)
    )
    assert features.pixels()(np.zeros((3, 2))).shape == (3, 2)


def test_random_convolutions_are_fixed_by_their_seed(digits):
    x = digits[0][:5]
    a, b, c = (features.extractor(f"random_convolutions:{s}") for s in (3, 3, 4))
    np.testing.assert_array_equal(a(x), b(x))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert np.abs(a(x) - c(x)).max() > 0.1
    assert a(x).shape == (5, 448)
    assert a(np.repeat(x, 3, -1)).shape == (5, 448)


def test_the_shipped_classifier_recognises_digits_it_has_not_seen(digits):
    x, labels = digits
    rows = held_out(len(x))
    found = features.digits_classifier().extract(x[rows])
    assert found.features.shape == (360, 64)
    assert (found.logits.argmax(1) == labels[rows]).mean() > 0.97
    assert WEIGHTS.stat().st_size < 200_000


def test_the_training_makes_such_weights():
    params, accuracy = train(60, batch_size=128)
    assert {k: v.shape for k, v in params.items() if "kernel" in k} == {
        f"{name}.kernel": shape for name, shape in SHAPES.items()
    }
    assert accuracy > 0.8


def test_features_stream_into_moments(digits, capsys):
    x = digits[0]
    stored = np.rint((x + 1) * 127.5).astype(np.uint8)
    batches = features.pixels().batches(
        stored, batch_size=500, prepare=lambda v: v / 127.5 - 1, progress=True
    )
    found = moments_of(part.features for part in batches)
    assert found.count == len(x)
    assert "pixels: 100%" in capsys.readouterr().err
    expected = (stored / 127.5 - 1).reshape(-1, 64).mean(0)
    np.testing.assert_allclose(found.mean, expected, atol=1e-7)


def test_torch_fidelity_names_its_extra(tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'distilljax\[eval\]'"):
        features.extractor(f"torch_fidelity:clip-vit-b-32:{tmp_path}/clip.pt")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: features.extractor("pixel"), "unknown features 'pixel'.*'pixels'"),
        (lambda x: features.extractor("pixels:3"), "must be written pixels"),
        (lambda x: features.extractor("inception"), "must be written inception:PATH"),
        (lambda x: features.extractor("random_convolutions:x"), "seed .* whole number"),
        (lambda x: features.extractor("torch_fidelity:a"), "torch_fidelity:NAME:PATH"),
        (lambda x: features.pixels()(x[0, 0, 0]), r"images must be \[n, ...\]"),
        (lambda x: features.digits_classifier()(x[:, :4]), "'digits' need images"),
        (
            lambda x: features.random_convolutions()(x.reshape(-1, 64)),
            "'random_convolutions' need images .*'pixels'",
        ),
    ],
)
def test_bad_input_is_named(digits, call, expected):
    with pytest.raises(ValueError, match=expected):
        call(digits[0][:4])
