"""The fit of a fake score to the student's samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from distilljax import losses
from distilljax.core.binding import Bound
from distilljax.core.context import Context
from distilljax.core.method import Term
from distilljax.diffusion.paths import Path, expand
from distilljax.diffusion.predictions import (
    EPS,
    SCORE,
    VELOCITY,
    X0,
    F,
    Prediction,
    kind_of,
    recompose,
)
from distilljax.diffusion.times import Law, Schedule
from distilljax.methods.parts import noised, path_of, told_field
from distilljax.runtime import words

Array = jax.Array
sg = jax.lax.stop_gradient


@words.call
@dataclasses.dataclass(frozen=True)
class MinSNR:
    """``min(alpha^2 / sigma^2, cap)``: the weight of Min-SNR on the error of ``x0``.

    Attributes:
      cap: largest weight, 5 in the paper.

    References:
      Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023,
        arXiv:2303.09556.
    """

    cap: float = 5.0

    def __call__(self, path: Path, t: Array) -> Array:
        ratio = path.alpha(t) / path.sigma(t)
        return jax.numpy.minimum(ratio**2, self.cap)


@words.call
@dataclasses.dataclass(frozen=True)
class Fit:
    """How a fake score is fitted: ``weight(t) |p_psi(x_t, t) - p*|^2 / 2``.

    ``p`` is a kind of prediction and ``p*`` that of the noised sample. By default it is
    what the releases have for such a network, its own prediction:

    | network | fit | as in |
    |---|---|---|
    | EDM | ``(1/sigma^2 + 1/sigma_d^2) |D - x|^2``, plain in ``F`` | DMD2, SiD |
    | eps | ``|eps_psi - eps|^2`` | DMD2, SiD-LSG |
    | velocity | ``|v_psi - (alpha' x + sigma' eps)|^2`` | TSD-SR's paper, FastGen |
    | v, x0 | plain error | FastGen |
    | TrigFlow | ``|D - x|^2 / sin^2 t``, plain in the velocity | rCM |

    Diff-Instruct has the first for its EDM networks too. A network that is viewed on
    another path than its own is fitted in ``F`` on an EDM path, in the velocity of that
    path otherwise.

    Attributes:
      prediction: kind of ``p``, a name of `predictions.KINDS`; None for the table's.
      path: path of ``x_t``; None for the method's.
      guidance: scale of the fake score under which it is fitted; SiD-LSG's
        ``kappa_1``, the gradient flows through both conditions.
      weight: function of path and time ``[B]``, for example `MinSNR`; None for 1.
    """

    prediction: str | None = None
    path: Path | None = None
    guidance: float = 1.0
    weight: Callable[[Path, Array], Array] | None = None

    def __post_init__(self):
        if self.prediction is not None:
            kind_of(self.prediction)

    def kind(self, net: Bound, path: Path) -> Prediction:
        """The kind of prediction in which a network is fitted on a path."""
        if self.prediction is not None:
            return kind_of(self.prediction)
        if path != net.path:
            return F if path.family == "edm" else VELOCITY
        if path.family == "trigflow":
            return VELOCITY
        if path.family == "edm" and net.kind is X0:
            return F
        return EPS if net.kind is SCORE else net.kind


@dataclasses.dataclass(frozen=True)
class ScoreFit:
    """Loss that fits a score network to the student's samples, see `Fit`.

    The samples are detached. The network is told where they were made from if the data
    say that, see `parts.student_draws`. Two with equal attributes are equal, so that
    methods that are composed share the network that they fit alike.

    Attributes:
      role: network that is fitted.
      sample: data field with the student's samples.
      law: times, over the full range.
      path: path; default the role's network's.
      fit: prediction, path and weight of the error.
    """

    role: str
    sample: str
    law: Law
    path: Path | None
    fit: Fit = Fit()

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that it takes beside the student, see `compose`."""
        return (self.role,)

    def __call__(self, ctx: Context) -> Array:
        fit = self.fit
        p = path_of(ctx, fit.path or self.path, self.role)
        kind = fit.kind(ctx.nets[self.role], p)
        x = sg(ctx.data[self.sample])
        x_t, t, eps = noised(ctx, x, self.law, p)
        told = ctx.data.get(f"{self.sample}_start")
        found = told_field(ctx, self.role, kind, p, told, fit.guidance)(x_t, t)
        target = recompose(p, kind, x, eps, expand(t, x))
        weights = None if fit.weight is None else fit.weight(p, t)
        return losses.regress(losses.toward(found, target, weights))


def fit_score(
    role: str,
    sample: str,
    law: Law,
    path: Path | None,
    weight: Schedule = 1.0,
    *,
    fit: Fit = Fit(),
) -> Term:
    """The term of a `ScoreFit`.

    Args:
      role: see `ScoreFit`.
      sample: see `ScoreFit`.
      law: see `ScoreFit`.
      path: see `ScoreFit`.
      weight: weight of the term.
      fit: see `ScoreFit`.
    """
    return Term("fit", ScoreFit(role, sample, law, path, fit), weight)
