"""Small settings of every registered method, shared by the tests of the catalogue.

A method that enters the catalogue enters here, with networks at most 32 wide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from distilljax import methods
from distilljax.core.binding import Network
from distilljax.core.draws import TeacherTrajectory
from distilljax.core.method import Method
from distilljax.diffusion.times import (
    EvenGrid,
    LogitNormal,
    LogNormal,
    Pair,
    Ramp,
    Uniform,
    central,
)
from distilljax.methods.curricula import DoublingSegments, RootSegments, Shrink
from distilljax.networks import policy
from distilljax.training.config import TrainConfig
from distilljax.training.roles import make_setup, run_mesh
from distilljax.training.state import create_frozen, create_state
from tests import toy

SHAPE = (2,)
CLASSES = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """Options of a method and how long its toy run is.

    Attributes:
      options: of the factory.
      cycles: of the toy run.
      lr: of the toy run.
      few_steps: whether it makes a few-step generator; else it makes teachers.
    """

    options: Mapping[str, Any]
    cycles: int = 300
    lr: float = 1e-3
    few_steps: bool = True


CASES = {
    "flow_matching": Case({"label_dropout": 0.1}, few_steps=False),
    "denoising": Case({"kind": "x0", "label_dropout": 0.1}, few_steps=False),
    "cm_cd": Case({"segments": 12, "grid": EvenGrid(), "guidance": 1.5}),
    "scm": Case({"warmup": 0.5}),
    "cm_ct": Case(
        {
            "segments": RootSegments(300, 2, 30),
            "grid": EvenGrid(),
            "init": "teacher",
            "target_decay": 0.0,
        }
    ),
    "ict": Case({"segments": DoublingSegments(300, 10, 40), "init": "teacher"}),
    "ect": Case({"gap": Shrink(300, 4), "law": LogNormal(0.0, 2.0)}),
    "lcm": Case({"segments": 12, "guidance": (1.0, 2.0)}),
    "facm": Case({"law": LogitNormal(0.4, 1.4), "guidance": 1.5}),
    "de_cm": Case({"start": Ramp(100, 0.9, 1.0), "guidance": 1.5}),
    "sana_sprint": Case(
        {"adversarial_weight": 0.01, "scm_weight": 1.0, "scm_options": {"warmup": 0.5}}
    ),
    "mean_flow": Case(
        {"law": Pair(LogitNormal(-0.4, 1.0), 0.25, 0.3, 0.2), "p": 0.5, "guidance": 1.5}
    ),
    "shortcut": Case(
        {"levels": 4, "share": 0.5, "target_decay": 0.95, "guidance": 1.5}
    ),
    "ayf_emd": Case({"warmup": Ramp(100, 0.0, 0.99), "guidance": 1.5}),
    "ayf_lmd": Case({"guidance": 1.5}),
    "ctm": Case(
        {"segments": 8, "grid": EvenGrid(), "guidance": 1.5, "target_decay": 0.95}
    ),
    "progressive": Case({"steps": (4, 2, 1), "round_cycles": 100}),
    "reflow": Case({"substeps": 8, "guidance": 1.5}),
    "pi_flow": Case(
        {
            "substeps": 8,
            "sampling_substeps": 32,
            "teacher_ratio": Ramp(100, 1.0, 0.0),
            "guidance": 1.5,
        }
    ),
    "dmd2": Case({"critic_steps": 2, "gan_weight": 0.01, "steps": (1, 2)}),
    "sid": Case({"critic_steps": 2}),
    "rcm": Case({"warmup": 0, "critic_steps": 2, "steps": (1, 2)}),
    "gdmd": Case({"critic_steps": 2, "targets": 2, "steps": (1, 2)}),
    "diff_instruct": Case({"critic_steps": 2, "law": central(0.02)}),
    "dmd": Case({"critic_steps": 2, "pairs": TeacherTrajectory(1, 8)}),
    "f_distill": Case({"critic_steps": 2, "gan_weight": 0.01, "bins": 4}),
    "tdm": Case({"critic_steps": 2, "steps": (1, 2)}),
    "ladd": Case(
        {
            "steps": 2,
            "shares": (0.75, 0.25),
            "law": Uniform(),
            "r1_weight": 0.1,
            "critic_steps": 4,
        }
    ),
    # Nothing pairs the outputs with the data here: little of the paired parts.
    "tsd_sr": Case({"critic_steps": 2, "share": 0.98, "regression_weight": 0.01}),
}


# Methods whose terms give a row of the batch its part by its place (`shares.Shares`).
PLACED = ("shortcut",)

# One of every kind of loss; the dearest tests take the others under --full only.
CORE = ("flow_matching", "cm_cd", "scm", "mean_flow", "dmd2", "sid", "rcm", "gdmd")


def with_marks(names: Iterable[str]) -> list[Any]:
    """Parameters of a dear test: the core, and the others marked ``full``."""
    return [n if n in CORE else pytest.param(n, marks=pytest.mark.full) for n in names]


def reward() -> Network:
    """Reward: the first element, without parameters that matter."""

    def value(params, x, cond=None):
        return params["scale"] * x.reshape(len(x), -1)[:, 0]

    return Network(
        "reward",
        None,
        lambda key: {"scale": jnp.ones(())},
        functions={"value": value},
    )


def log_weight() -> Network:
    """Learned weight ``w(t)``, linear in time features, zero at the start."""

    def init(key):
        return {"w": jnp.zeros((2 * len(toy.FREQUENCIES) + 1,))}

    def call(params, t):
        return toy.time_features(t) @ params["w"]

    return Network("log_weight", None, init, functions={"log_weight": call})


def networks(**changes: Any) -> dict[str, Network]:
    """Networks by key for every method of the catalogue."""
    backbone = toy.mlp(SHAPE, second_time=True, num_classes=CLASSES)
    return {
        "backbone": backbone,
        "policy": policy(backbone, SHAPE, components=4),
        "discriminator": toy.head(num_classes=CLASSES),
        "log_weight": log_weight(),
        "reward": reward(),
        **changes,
    }


def method(name: str) -> Method:
    """The method under its small settings."""
    return methods.build(name, **CASES[name].options)


def params(
    nets: Mapping[str, Network], method: Method, seed: int = 0
) -> dict[str, Any]:
    """Parameters of the roles that want theirs given."""
    given = {
        name: nets.get(name, nets[role.network]).init(jax.random.key(seed))
        for name, role in method.roles.items()
        if role.init == "given"
    }
    starts = {role.init for role in method.roles.values()}
    if "teacher" in starts and "teacher" not in given:
        given["teacher"] = nets["backbone"].init(jax.random.key(seed))
    return given


def joined(
    nets,
    built: Method,
    *,
    batch_size: int = 16,
    shape: tuple[int, ...] = SHAPE,
    on: jax.sharding.Mesh | None = None,
    **train,
):
    """The setup of a method on networks, without numbers."""
    config = TrainConfig.of(
        {"cycles": 10, "batch_size": batch_size, "default": {"lr": 1e-3}, **train},
        roles=built.roles,
    )
    return make_setup(built, nets, config, shape, on or run_mesh(config))


def setup(name: str, *, nets=None, built: Method | None = None, **train):
    """``(setup, state, frozen)`` of a method, by default under its small settings."""
    built = method(name) if built is None else built
    nets = networks() if nets is None else nets
    whole = joined(nets, built, **train)
    given = params(nets, built)
    return whole, create_state(whole, given), create_frozen(whole, given)


def batch(
    count: int,
    batch_size: int = 16,
    seed: int = 0,
    shape: tuple[int, ...] = SHAPE,
) -> dict[str, jax.Array]:
    """A cycle's batches ``[count, 1, B, ...]`` of points and labels."""
    a, b = jax.random.split(jax.random.key(seed))
    return {
        "x0": jax.random.normal(a, (count, 1, batch_size, *shape)),
        "cond": jax.random.randint(b, (count, 1, batch_size), 0, CLASSES),
    }
