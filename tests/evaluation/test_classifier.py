"""The pixel classifier recognises digits it has not seen, and refuses bad input."""

import numpy as np
import pytest

from distilljax.evaluation.classifier import PixelClassifier


@pytest.fixture(scope="module")
def half(digits):
    x, labels = digits
    return PixelClassifier.fit(x[::2], labels[::2])


def test_it_recognises_unseen_digits(half, digits):
    x, labels = digits
    accuracy = half.accuracy(x[1::2], labels[1::2])
    assert accuracy > 0.98
    predicted = half.predict(x[1::2])
    assert predicted.dtype == np.int32
    assert accuracy == np.mean(predicted == labels[1::2])


def test_wrong_labels_and_noise_score_low(half, digits):
    x, labels = digits
    assert half.accuracy(x[:300], (labels[:300] + 1) % 10) < 0.02
    noise = np.random.default_rng(0).uniform(-1, 1, x[:300].shape)
    assert half.accuracy(noise, labels[:300]) < 0.3


def test_it_is_the_documented_machine(half):
    assert type(half.model).__name__ == "SVC"
    assert (half.model.gamma, half.model.C) == ("scale", 10)
    assert (half.shape, half.classes) == ((8, 8, 1), 10)


def test_bad_input_is_named(half, digits):
    x, labels = digits
    with pytest.raises(ValueError, match=r"labels must name at least two classes"):
        PixelClassifier.fit(x[:5], np.zeros(5, int))
    with pytest.raises(ValueError, match=r"x must lie in \[-1, 1\]"):
        PixelClassifier.fit((x + 1) * 127.5, labels)
    with pytest.raises(ValueError, match=r"x must have images of shape \(8, 8, 1\)"):
        half.predict(x[:, :4])
    with pytest.raises(ValueError, match=r"labels must be in 0..9, got .* to 10"):
        half.accuracy(x[:2], np.array([1, 10]))
