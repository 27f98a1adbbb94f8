"""f-divergences ``E_q f(r)`` with ``r = p/q`` the ratio of real to student density.

The gradient of every one of them in the student's parameters is that of the reverse KL
divergence times ``h(r) = r^2 f''(r)`` per sample (Xu et al. 2025).

| name | divergence | f(r) | h(r) |
|---|---|---|---|
| `rkl` | reverse KL, mode seeking | -log r | 1 |
| `fkl` | forward KL, mode covering | r log r | r |
| `jf` | Jeffreys | (r - 1) log r | 1 + r |
| `js` | Jensen-Shannon | r log r - (r + 1) log((r + 1)/2) | r/(1 + r) |
| `sf` | softened reverse KL | (r + 1) log(1/2 + 1/(2 r)) | 1/(1 + r) |
| `sh` | squared Hellinger | 1 - sqrt r | sqrt(r)/4 |
| `ney` | Neyman chi squared | 1/r - 1 | 2/r |
| `chi2` | Pearson chi squared | (r - 1)^2 | 2 r^2 |
| `skew(a)` | skewed Jensen-Shannon over a (1 - a) | see `skew` | r/(a r + 1 - a) |

References:
  Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching, 2025,
    arXiv:2502.15681.
  Jayashankar et al., Score-of-Mixture Training, 2025, arXiv:2502.09609 (skew).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distilljax.runtime import words
from distilljax.runtime.errors import unknown

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Divergence:
    """An f-divergence.

    Attributes:
      name: of the table above.
      f: convex function of the ratio, elementwise, 0 at 1.
      h: ``r^2 f''(r)``, elementwise.
    """

    name: str
    f: Callable[[Array], Array]
    h: Callable[[Array], Array]


@words.call
def skew(a: float) -> Divergence:
    """``KL(q|m)/a + KL(p|m)/(1 - a)`` with the mixture ``m = a p + (1 - a) q``.

    The limits are forward KL (``a = 0``) and reverse KL (``a = 1``); ``a = 1/2`` has
    twice the weight of `js`.

    Args:
      a: share of the real density in the mixture, in ``(0, 1)``.
    """
    if not 0.0 < a < 1.0:
        raise ValueError(
            f"a must lie in (0, 1), got {a}; use the divergence 'fkl' for 0 and 'rkl' "
            "for 1"
        )

    def f(r: Array) -> Array:
        m = a * r + 1.0 - a
        return (a * r * jnp.log(r) - m * jnp.log(m)) / (a * (1.0 - a))

    return Divergence(f"skew({a})", f, lambda r: r / (a * r + 1.0 - a))


_ALL = (
    Divergence("rkl", lambda r: -jnp.log(r), jnp.ones_like),
    Divergence("fkl", lambda r: r * jnp.log(r), lambda r: r),
    Divergence("jf", lambda r: (r - 1.0) * jnp.log(r), lambda r: 1.0 + r),
    Divergence(
        "js",
        lambda r: r * jnp.log(r) - (r + 1.0) * jnp.log((r + 1.0) / 2.0),
        lambda r: r / (1.0 + r),
    ),
    Divergence(
        "sf",
        lambda r: (r + 1.0) * jnp.log(0.5 + 0.5 / r),
        lambda r: 1.0 / (1.0 + r),
    ),
    Divergence("sh", lambda r: 1.0 - jnp.sqrt(r), lambda r: jnp.sqrt(r) / 4.0),
    Divergence("ney", lambda r: 1.0 / r - 1.0, lambda r: 2.0 / r),
    Divergence("chi2", lambda r: (r - 1.0) ** 2, lambda r: 2.0 * r**2),
)
DIVERGENCES = {d.name: d for d in _ALL}


def divergence_of(divergence: str | Divergence) -> Divergence:
    """Looks a divergence up by name.

    Raises:
      ValueError: if there is none of the name; names the near ones.
    """
    if isinstance(divergence, Divergence):
        return divergence
    if divergence not in DIVERGENCES:
        raise ValueError(unknown("divergence", divergence, DIVERGENCES))
    return DIVERGENCES[divergence]
