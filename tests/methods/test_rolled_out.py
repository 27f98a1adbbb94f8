"""Fake scores that are told from which time a sample was made, in float64."""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import pytest

from distilljax import oracles, paths
from distilljax.methods import CATALOGUE, build, dmd2, gdmd, sid
from tests.methods import cases
from tests.methods.played import play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()
TELLING = [
    name
    for name, entry in CATALOGUE.items()
    if "told_start" in inspect.signature(entry.factory).parameters
]


def test_the_methods_that_roll_out_can_tell():
    assert sorted(TELLING) == ["dmd2", "f_distill", "gdmd", "sid"]


@pytest.mark.parametrize("name", TELLING)
def test_only_a_told_fake_score_needs_a_second_time(name):
    options = cases.CASES[name].options
    plain, told = build(name, **options), build(name, **options, told_start=True)
    assert "second_time" not in plain.roles["fake_score"].needs
    assert "second_time" in told.roles["fake_score"].needs
    assert all("second_time" not in told.roles[r].needs for r in ("student", "teacher"))


def laws_of(teacher, grid):
    """Laws of the student's samples at every exit of its steps.

    The denoiser of a Gaussian is affine, so that its samples are Gaussian.
    """
    denoise = teacher.denoised(LINEAR)
    mean, variance = jnp.zeros(2), jnp.ones(2)
    out = []
    for t, s in itertools.zip_longest(grid, grid[1:], fillvalue=0.0):
        ends = denoise(jnp.stack([mean, mean + 1.0]), t)
        std = jnp.sqrt(variance) * jnp.abs(ends[1] - ends[0])
        out.append(oracles.Gaussian(ends[0], std))
        mean, variance = (1 - s) * ends[0], ((1 - s) * std) ** 2 + s**2
    return out


@pytest.mark.parametrize(
    "method",
    [
        dmd2(steps=(2,), gan_weight=0, told_start=True),
        dmd2(steps=(2,), gan_weight=0, slots=(1, 1), told_start=True),
        sid(steps=(2,), told_start=True),
        gdmd(steps=(2,), targets=2, told_start=True),
    ],
    ids=["dmd2", "slots", "sid", "gdmd"],
)
def test_a_told_fake_score_rests_at_the_score_of_every_step(method):
    """And not at that of another step, which it would be told by the wrong time."""
    wrong = oracles.Gaussian(jnp.asarray([0.7, -0.3]), jnp.asarray([0.3, 1.2]))
    net = oracles.network(wrong, LINEAR)
    first, second = (g.velocity(LINEAR) for g in laws_of(wrong, (1.0, 0.5)))

    def largest(turned):
        def apply(p, x, t, cond=None, s=None, **_):
            at_first = (s[:, None] > 0.75) != turned
            velocity = jnp.where(at_first, first(x, t), second(x, t))
            return velocity + p["a"] * x + p["b"]

        tilted = dataclasses.replace(
            net,
            apply=apply,
            init=lambda key: {"a": jnp.zeros(2), "b": jnp.zeros(2)},
            capabilities=net.capabilities | {"second_time"},
        )
        totals = []
        # Without slots a batch holds one exit: four cycles meet both.
        for cycle in range(4):
            grads = play(
                method,
                phase="fake_score",
                batch_size=4096,
                same=("fake_score",),
                step=cycle,
                student=net,
                fake_score=tilted,
            ).gradients()["fake_score"]
            totals.append(max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)))
        return max(totals)

    assert largest(turned=False) < 0.06
    assert largest(turned=True) > 0.15
