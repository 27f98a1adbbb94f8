"""What the reward does to a score gap, on Gaussians whose scores are exact."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import oracles, paths
from distilljax.core.binding import Network
from distilljax.core.method import batches
from distilljax.losses.corrections import correct
from distilljax.losses.transforms import weight_by_reward
from distilljax.methods import gdmd
from distilljax.methods.matching._gap import match_scores
from distilljax.training.cycle import run_cycle
from tests import exact
from tests.methods import cases
from tests.methods.played import exact_jumper, play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()
REAL = oracles.Gaussian(jnp.array([0.7, -0.3]), 0.7)
GAP = np.array([0.9, -0.7])
BOUND = 5.0


def reward(slope):
    """The linear reward ``slope . y``."""
    return Network(
        "reward",
        None,
        lambda key: {"slope": jnp.asarray(slope)},
        functions={"value": lambda params, x, cond=None: x @ params["slope"]},
    )


def shifting(oracle):
    """The exact generator of a Gaussian, plus a shift that is its parameter."""
    jumper = exact_jumper(oracle, LINEAR)

    def apply(params, x, t, cond=None, s=None, **options):
        return jumper.apply({}, x, t) - params["shift"]

    return dataclasses.replace(
        jumper, apply=apply, init=lambda key: {"shift": jnp.zeros(2)}
    )


def update(slope, student=None, **options):
    """``(mean update of the samples, directions [targets, B, 2])``."""
    method = gdmd(targets=4, steps=(1,), **options)
    student = REAL._replace(mean=REAL.mean - GAP) if student is None else student
    found = play(
        method,
        batch_size=64,
        same=("student",),
        student=shifting(student),
        teacher=oracles.network(REAL, LINEAR),
        fake_score=oracles.network(student, LINEAR),
        reward=reward(slope),
    )
    # The loss is half a mean over two elements, of which the gradient is minus a half.
    moved = -2.0 * found.gradients()["student"]["shift"]
    ctx = found.context().of("rewarded")
    law = gdmd.__kwdefaults__["law"]
    return moved, jnp.stack(
        [match_scores(ctx, law, None, 1.0, suffix=str(i)).direction for i in range(4)]
    )


@pytest.mark.parametrize(
    ("matching", "strength"), [(0.0, 1.0), (1.0, 1.0), (1.0, 12.0)]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_reward_speeds_the_way_to_the_teacher_or_turns_it_around(
    matching, strength, sign
):
    """Equal spreads: every direction is ``c_i gap``, ``c_i > 0``, and under a linear
    reward the update is ``gap (matching mean c + strength sign std c / bound)``."""
    slope = sign * np.array([0.4, 0.1])
    moved, directions = update(slope, matching=matching, strength=strength)
    c = directions @ GAP / (GAP @ GAP)
    exact.allclose(directions, c[..., None] * GAP, 1e-5)
    mean, std = jnp.mean(c, 0), jnp.std(c, 0)
    rate = jnp.mean(matching * mean + strength * np.sign(slope @ GAP) * std / BOUND)
    exact.allclose(moved, rate * GAP, 5e-3)
    toward = float(moved @ GAP) > 0
    if matching and strength == 1.0:
        # The safe form nears the teacher whatever the reward says.
        assert toward
        assert 0.05 < float(jnp.mean(std) / jnp.mean(mean)) / BOUND < 0.25
    else:
        assert toward == (sign > 0)


@pytest.mark.parametrize("matching", [0.0, 1.0])
def test_the_reward_rises_by_the_spread_of_the_targets(matching):
    """For any Gaussians: ``slope . update`` is ``matching`` times that of the gap, plus
    the standard deviation of the reward over the targets, over ``bound``."""
    student = oracles.Gaussian(jnp.array([-0.4, 0.5]), jnp.array([0.3, 1.1]))
    slope = np.array([-0.8, 0.5])
    moved, directions = update(slope, student, matching=matching)
    rewards = directions @ slope
    gained = jnp.mean(matching * jnp.mean(rewards, 0) + jnp.std(rewards, 0) / BOUND)
    exact.allclose(slope @ moved, gained, 5e-3)
    assert matching or float(slope @ moved) > 0.01


@pytest.mark.parametrize("matching", [0.0, 1.0])
def test_the_law_of_the_teacher_is_a_point_of_rest_of_both_forms(matching):
    moved, directions = update(np.array([0.4, 0.1]), REAL, matching=matching)
    exact.allclose(directions, jnp.zeros_like(directions), 1e-9)
    exact.allclose(moved, jnp.zeros(2), 1e-9)


@pytest.mark.parametrize(("matching", "stable"), [(0.0, False), (1.0, True)])
def test_the_teacher_attracts_under_the_safe_form_alone(matching, stable):
    """A student a little past the teacher on the side of more reward."""
    slope = GAP / np.linalg.norm(GAP)
    past = REAL._replace(mean=REAL.mean + 0.1 * slope)
    moved, _ = update(slope, past, matching=matching)
    assert (float(slope @ moved) < 0) == stable


def test_the_default_weights_lie_between_065_and_135():
    """Four z-scores are at most the root of three, of which the bound takes a fifth."""
    rewards = jax.random.normal(jax.random.key(3), (4, 1000)) ** 9
    z = (rewards - jnp.mean(rewards, 0)) / (jnp.std(rewards, 0) + 1e-4)
    flat = correct(jnp.zeros((1000, 1)), jnp.ones((1000, 1)))
    weights = jnp.stack([weight_by_reward(flat, row).weight for row in z])
    assert 0.65 < float(weights.min()) < 0.67
    assert 1.33 < float(weights.max()) < 1.35


def test_rewards_that_say_nothing_of_the_target_average_out():
    """Advantages independent of the directions: the signed update has mean 0."""
    noise = jax.random.normal(jax.random.key(0), (64, 4))

    def value(params, x, cond=None):
        # Another number for every call, whatever the target is.
        calls.append(None)
        return noise[:, len(calls) % 4]

    calls: list[None] = []
    blind = Network("reward", None, lambda key: {}, functions={"value": value})
    student = REAL._replace(mean=REAL.mean - GAP)

    def size(matching):
        found = play(
            gdmd(targets=4, steps=(1,), matching=matching),
            batch_size=64,
            same=("student",),
            student=shifting(student),
            teacher=oracles.network(REAL, LINEAR),
            fake_score=oracles.network(student, LINEAR),
            reward=blind,
        )
        return float(jnp.abs(found.gradients()["student"]["shift"]).max())

    assert size(0.0) < 0.05 * size(1.0)


def test_a_reward_of_another_shape_is_refused():
    bad = Network(
        "bad", None, lambda key: {}, functions={"value": lambda params, x, cond=None: x}
    )
    setup, state, frozen = cases.setup("gdmd", nets=cases.networks(reward=bad))
    phases = setup.method.phases
    cycle = functools.partial(run_cycle, setup, phases)
    with pytest.raises(ValueError, match=r"one number for each sample.*\[16, 2\]"):
        jax.eval_shape(cycle, state, frozen, cases.batch(batches(phases)))
