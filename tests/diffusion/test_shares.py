"""Shares of a batch: sizes, interleaving, and there and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.diffusion.shares import Shares


@pytest.mark.parametrize(
    "counts", [(32, 224), (2, 6), (3, 7), (0, 5), (4, 0), (2, 3, 5)]
)
def test_parts_come_back_in_order(counts):
    shares = Shares(counts)
    batch = sum(counts)
    x = {"a": jnp.arange(batch), "b": jnp.arange(2.0 * batch).reshape(batch, 2)}
    parts = [shares.take(i, x) for i in range(len(counts))]
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part["a"], np.flatnonzero(shares.part() == i))
        assert part["b"].shape == (counts[i], 2)
    for name, whole in x.items():
        np.testing.assert_array_equal(shares.join(*(p[name] for p in parts)), whole)


def test_devices_hold_their_part_of_each():
    on = Shares((64, 192)).part() == 0
    assert on.reshape(8, 32).sum(1).tolist() == [8] * 8


@pytest.mark.parametrize("counts", [(), (0, 0), (-1, 4)])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="counts must be rows"):
        Shares(counts)
