"""MeanFlow: fixed shares of a batch on the diagonal, and where labels are dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.diffusion.paths import linear
from distilljax.diffusion.times import LogitNormal, Pair
from distilljax.methods import mean_flow
from distilljax.methods.parts import dropped
from distilljax.training.cost import matmul_flops
from tests import exact
from tests.methods.played import play

pytestmark = pytest.mark.usefixtures("x64")


class Plain:
    """The times of another law, without saying which rows are fixed."""

    def __init__(self, law):
        self._law = law

    def __call__(self, key, shape, path):
        return self._law(key, shape, path)


@pytest.mark.parametrize("diagonal", [0.0, 0.7, 0.75, 1.0])
def test_a_fixed_share_is_the_plain_loss_row_by_row(diagonal):
    law = Pair(LogitNormal(-0.4, 1.0), diagonal, fixed=True)
    options = {"teacher": False, "omega": 1.5, "kappa": 0.3, "label_dropout": 0.3}
    fixed, plain = (
        play(mean_flow(law=one, **options), batch_size=20) for one in (law, Plain(law))
    )
    exact.allclose(fixed.values()["average"], plain.values()["average"], 1e-10)
    pairs = (jax.tree.leaves(f.gradients()) for f in (fixed, plain))
    for a, b in zip(*pairs, strict=True):
        exact.allclose(a, b, 1e-9)


def test_rows_on_the_diagonal_take_no_tangent():
    def products(law):
        found = play(mean_flow(law=law, teacher=False), batch_size=64)
        ctx = found.context()
        (term,) = found.update.phase.terms
        return matmul_flops(lambda: term.loss(ctx.of("average")).values)

    plain, fixed = products(Pair()), products(Pair(fixed=True))
    # Forwards and tangents: 2 of 2, and 1.25 with three quarters on the diagonal.
    assert fixed / plain == pytest.approx(1.25 / 2.0, rel=0.01)


def labels(batch, on, share, dropping):
    """Which rows a term drops whose first ``on`` rows lie on the diagonal."""
    seen = {}

    class Law:
        def __call__(self, key, shape, path):
            t = jnp.full(shape, 0.7)
            return t, jnp.where(jnp.arange(shape[0]) < on, t, 0.2)

    found = play(
        mean_flow(law=Law(), teacher=False, label_dropout=share), batch_size=batch
    )
    ctx = found.context().of("average")
    uniform = type(ctx).uniform

    def drawn(self, name, shape=None):
        out = uniform(self, name, shape)
        return jnp.asarray(dropping) if name == "drop" and dropping is not None else out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ctx), "uniform", drawn)
        patch.setattr(
            "distilljax.methods.flow_map.mean_flow.dropped",
            lambda *args: seen.setdefault("out", dropped(*args)),
        )
        found.update.phase.terms[0].loss(ctx)
    return np.asarray(seen["out"][1])


def test_labels_are_dropped_on_the_diagonal():
    """The release drops the labels of so many rows as it draws, from there."""
    drop = labels(4000, 3000, 0.1, None)
    assert not drop[3000:].any()
    assert drop.mean() == pytest.approx(0.1, abs=0.02)
    # Where the diagonal does not suffice, the others follow; without one all are alike.
    drop = labels(4000, 1000, 0.5, None)
    assert drop[:1000].all()
    assert drop.mean() == pytest.approx(0.5, abs=0.03)
    assert labels(4000, 0, 0.1, None).mean() == pytest.approx(0.1, abs=0.02)


def test_rows_that_shall_lose_their_label_do():
    """Zeros in place of the draw name rows anywhere, ones none."""
    wanted = np.asarray([1, 0, 1, 0, 0, 0, 0, 1], bool)
    np.testing.assert_array_equal(labels(8, 4, 0.1, 1.0 - wanted), wanted)


def test_the_law_of_the_cifar_release():
    law = Pair(LogitNormal(-0.6, 1.6), 0.25, end=LogitNormal(-4.0, 1.6))
    t, s = law(jax.random.key(0), (200_000,), linear())
    rng = np.random.default_rng(0)

    def drawn(mean):
        return 1.0 / (1.0 + np.exp(-(mean + 1.6 * rng.standard_normal(200_000))))

    a, b = drawn(-0.6), drawn(-4.0)
    b = np.minimum(a, np.where(rng.uniform(size=200_000) < 0.25, a, b))
    levels = np.linspace(0.05, 0.95, 19)
    for mine, theirs in ((t, a), (s, b), (t - s, a - b)):
        # Distribution functions at the other's quantiles.
        at = np.quantile(theirs, levels)
        found = (np.asarray(mine)[:, None] <= at).mean(0)
        there = (theirs[:, None] <= at).mean(0)
        np.testing.assert_allclose(found, there, atol=0.006)
