"""Values of the config against their types: no NaN, no text, no half counts."""

import math

import numpy as np
import pytest

from distilljax.training.config import TrainConfig

BAD = [math.nan, math.inf, -math.inf, "1e-4", True, [1.0]]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    "key", ["lr", "clip", "eps", "ema", "weight_decay", "schedule.restart_factor"]
)
def test_numbers_of_a_role_are_finite_numbers(key, value):
    name, _, inner = key.partition(".")
    section = {name: {inner: value} if inner else value, "optimizer": "adamw"}
    with pytest.raises(ValueError, match=inner or name):
        TrainConfig.of({"student": section})


@pytest.mark.parametrize("value", [*BAD, 0.5, None])
@pytest.mark.parametrize("key", ["cycles", "batch_size", "seed", "evaluate_every"])
def test_counts_are_whole_numbers(key, value):
    with pytest.raises(ValueError, match=f"{key} must be a whole number"):
        TrainConfig.of({key: value})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mesh": 1}, "mesh must be a mapping"),
        ({"mesh": {"data": 2.5}}, "mesh.data must be a whole number"),
        ({"student": {"betas": 0.9}}, "betas must be 2 values"),
        (
            {"student": {"betas": (0.9, math.nan)}},
            r"betas\[1\] must be",
        ),
        ({"fuse": None}, "fuse must be text"),
        ({"logging": ["wandb"]}, "logging must be text"),
        ({"checkpoint": {"every": 2.5}}, "checkpoint.every must be a whole number"),
        ({"checkpoint": {"best": 1}}, "checkpoint.best must be text"),
        ({"data_timeout": math.nan}, "data_timeout must be a finite number"),
        ({"seed": 2**32}, "seed must lie in 0 .. 4294967295"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_other_values_are_named(values, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig.of(values)


def test_numbers_of_numpy_become_plain_ones():
    config = TrainConfig.of(
        {"cycles": np.int64(3), "student": {"lr": np.float32(0.5), "clip": 1}}
    )
    assert type(config.cycles) is int
    assert type(config.role("student").lr) is float
    assert config.role("student").clip == 1
