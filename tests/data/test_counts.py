"""Label lists with the data's counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilljax.data import digits, interleaved_labels, label_counts


def test_digits_counts_survive():
    labels = digits().columns["cond"]
    counts = label_counts(labels, 10)
    out = interleaved_labels(counts)
    assert out.dtype == np.int32
    assert len(out) == 1797
    np.testing.assert_array_equal(np.sort(out), np.sort(labels))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_counts_are_exact_and_every_prefix_is_balanced(counts):
    counts = np.array(counts)
    out = interleaved_labels(counts)
    np.testing.assert_array_equal(label_counts(out, len(counts)), counts)
    total = counts.sum()
    for n in range(1, total + 1):
        have = label_counts(out[:n], len(counts))
        assert np.all(np.abs(have - n * counts / total) <= len(counts))


def test_equal_counts_take_turns():
    out = interleaved_labels(np.array([3, 3, 3]))
    np.testing.assert_array_equal(out, [0, 1, 2] * 3)


@pytest.mark.parametrize("labels", [[0.5], [[1]], [-1, 2], [0, 3]])
def test_label_counts_refuses(labels):
    with pytest.raises(ValueError, match="labels must"):
        label_counts(np.array(labels), 3)


@pytest.mark.parametrize("counts", [[-1, 2], [0.5], 3])
def test_interleaved_labels_refuses(counts):
    with pytest.raises(ValueError, match="counts must"):
        interleaved_labels(np.array(counts))
