"""Fixed shares of a batch, interleaved, so that every device holds its part of each."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.runtime.axes import untyped

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Shares:
    """Parts of a batch that are computed differently, each of a fixed size.

    The batch falls into as many equal groups of consecutive rows as its sizes allow,
    and every group holds the parts one after the other: of 256 rows with the counts
    ``(32, 224)`` those of the first part are 0, 8, 16, ... A part of a batch that is
    split over devices is then split like it, and the rest of the program too.

    Attributes:
      counts: rows of every part; their sum is the batch. Groups are as many as the
        greatest common divisor of the counts; devices that do not divide it exchange
        rows.
    """

    counts: tuple[int, ...]

    def __post_init__(self):
        if min(self.counts, default=-1) < 0 or sum(self.counts) < 1:
            raise ValueError(
                f"counts must be rows of every part, at least 0, got {self.counts}"
            )

    @property
    def groups(self) -> int:
        """Number of equal groups."""
        return math.gcd(*self.counts)

    def part(self) -> np.ndarray:
        """The part that every row belongs to, ``[B]``."""
        once = [n // self.groups for n in self.counts]
        return np.tile(np.repeat(np.arange(len(once)), once), self.groups)

    def take(self, index: int, tree: Any) -> Any:
        """Rows of one part, of every array of a tree; its order is kept."""
        start, count = (
            n // self.groups for n in (sum(self.counts[:index]), self.counts[index])
        )

        def rows(x: Array) -> Array:
            x = x.reshape(self.groups, -1, *x.shape[1:])[:, start : start + count]
            return x.reshape(-1, *x.shape[2:])

        return jax.tree.map(lambda x: untyped(rows, x)(x), tree)

    def join(self, *parts: Array) -> Array:
        """The batch out of its parts: the inverse of `take`."""

        def whole(*parts: Array) -> Array:
            rows = [p.reshape(self.groups, -1, *p.shape[1:]) for p in parts if len(p)]
            out = jnp.concatenate(rows, axis=1)
            return out.reshape(-1, *out.shape[2:])

        return untyped(whole, *parts)(*parts)
