import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from distilljax.training.config import (
    OPTIMIZERS,
    RoleConfig,
    ScheduleConfig,
    TrainConfig,
)


def test_roles_inherit_from_default_and_round_trip():
    values = {
        "cycles": 7,
        "default": {"lr": 0.5, "clip": 1.0, "schedule": "cosine"},
        "student": {"lr": 0.25, "betas": [0.0, 0.9]},
    }
    config = TrainConfig.of(values, roles=("student", "critic"))
    assert config.role("student").lr == 0.25
    assert config.role("student").betas == (0.0, 0.9)
    assert config.role("student").clip == 1.0
    assert config.role("critic").schedule == ScheduleConfig("cosine")
    again = json.loads(json.dumps(config.to_dict()))
    assert TrainConfig.of(again) == config


def test_from_config_dict():
    values = ConfigDict({"student": {"lr": 0.1, "schedule": {"warmup": 3}}, "seed": 4})
    config = TrainConfig.of(values)
    assert config.seed == 4
    assert config.role("student").schedule.warmup == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cycels": 3}, ["cycels", "cycles"]),
        ({"studnet": {"lr": 1.0}}, ["studnet", "student"]),
        ({"student": {"lrate": 1.0}}, ["lrate", "student", "lr"]),
        ({"student": {"optimizer": "adma"}}, ["adma", "adam"]),
        ({"student": {"schedule": "cosin"}}, ["cosin", "cosine"]),
        ({"student": {"schedule": {"warm": 1}}}, ["warm", "warmup"]),
        ({"checkpoint": {"evry": 1}}, ["evry", "every"]),
        ({"mesh": {"dat": 8}}, ["dat", "data"]),
        ({"fuse": "phases"}, ["phases", "phase"]),
        ({"cycles": 0}, ["cycles", "0"]),
        ({"student": {"ema": 1.0}}, ["ema", "1.0"]),
        ({"student": {"ema": 0.9, "ema_half_life": 5.0}}, ["ema or ema_half_life"]),
        ({"student": {"ema_half_life": 0.0}}, ["ema_half_life", "0.0"]),
        ({"student": {"ema_ramp": 0.05}}, ["ema_ramp", "beside ema"]),
        ({"student": {"optimizer": "adam", "weight_decay": 0.1}}, ["adamw"]),
        ({"student": 3}, ["student", "3"]),
        (3, ["config", "mapping", "3"]),
        ({"roles": 3}, ["roles", "mapping", "3"]),
        ({"student": {"rules": [["kernel", 3]]}}, ["rule", "mesh axis", "3"]),
        ({"student": {"rules": [["(", ["fsdp"]]]}}, ["regular expression", "'('"]),
        ({"checkpoint": {"keep_period": 0}}, ["keep_period", "at least 1"]),
    ],
)
def test_refused(values, words):
    with pytest.raises(ValueError, match=words[0]) as error:
        TrainConfig.of(values, roles=("student",))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_descends(name):
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones((4,))}
    tx = RoleConfig(optimizer=name, lr=0.01).build(10)
    state = tx.init(params)
    loss = lambda p: jnp.sum(p["w"] ** 2) + jnp.sum(p["b"] ** 2)  # noqa: E731
    start = loss(params)
    for _ in range(5):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < start


def test_schedules():
    def values(steps, **schedule):
        build = ScheduleConfig(**schedule).build(2.0, 100)
        return [float(build(step)) for step in steps]

    assert values([0, 50], name="constant") == [2.0, 2.0]
    assert values([0, 1, 3, 9], name="constant", warmup=4) == [0.5, 1.0, 2.0, 2.0]
    np.testing.assert_allclose(
        values([0, 50, 100], name="cosine", end=0.1), [2.0, 1.1, 0.2]
    )
    np.testing.assert_allclose(
        values([9, 55, 100], name="warmup_cosine", warmup=10),
        [2.0, 1.0, 0.0],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        values([4, 16, 64], name="inverse_sqrt", warmup=4), [2.0, 1.0, 0.5]
    )


def test_weight_decay_spares_vectors():
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones((4,))}
    tx = RoleConfig(optimizer="adamw", lr=0.1, weight_decay=0.5).build(1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert float(jnp.max(jnp.abs(updates["b"]))) == 0.0
    np.testing.assert_allclose(updates["w"], -0.05)


def test_a_schedule_starts_again():
    section = {"name": "warmup_cosine", "warmup": 2, "restart": 10}
    once = RoleConfig(
        schedule=ScheduleConfig(name="warmup_cosine", warmup=2)
    ).schedule.build(1.0, 10)
    twice = ScheduleConfig(**section, restart_factor=0.5).build(1.0, 20)
    for count in (0, 1, 5, 9):
        assert float(twice(count)) == pytest.approx(float(once(count)))
        assert float(twice(count + 10)) == pytest.approx(0.5 * float(once(count)))
    with pytest.raises(ValueError, match="restart must be at least 1"):
        ScheduleConfig(restart=0)


def test_averages_begin_as_the_releases_have_them():
    steps = np.asarray([0.0, 3.0, 100.0, 1e6])
    plain = RoleConfig(ema=0.99).ema_decay(steps, 512)
    np.testing.assert_allclose(plain, np.minimum(0.99, (1 + steps) / (10 + steps)))
    whole = RoleConfig(ema=0.99, ema_ramp=0.0).ema_decay(steps, 512)
    np.testing.assert_allclose(whole, 0.99)
    # EDM counts images: the half-life is at most a twentieth of those seen so far.
    edm = RoleConfig(ema_half_life=5e5, ema_ramp=0.05).ema_decay(steps, 512)
    seen = np.minimum(5e5, np.maximum(0.05 * 512 * steps, 1e-8))
    np.testing.assert_allclose(edm, 0.5 ** (512 / seen), rtol=1e-5)
    # EDM2's power function (1 - 1 / (k + 1))^(gamma + 1) of relative width 0.05.
    power = RoleConfig(ema=0.999999, ema_ramp=0.0386).ema_decay(steps[2:3], 512)
    np.testing.assert_allclose(power, (1 - 1 / 101) ** (16.97 + 1), rtol=0.01)
    assert not RoleConfig().averaged
    assert RoleConfig(ema_half_life=3.0).averaged
