"""Networks that a config names: rewards by import path, weak teachers by run."""

import json
import sys

import jax.numpy as jnp
import pytest

import distilljax
from distilljax.experiment import api, cards, given

NET = {"name": "mlp", "width": 16, "blocks": 1}
REWARDS = """
import jax.numpy as jnp
from distilljax import Network

def right(scale=1.0, params=None):
    def value(params, x, cond=None):
        return params["scale"] * x[..., 0]
    made = Network("right", None, lambda key: {"scale": jnp.asarray(scale)},
                   functions={"value": value})
    return made if params is None else (made, {"scale": jnp.asarray(params)})

def number():
    return 3
"""


def card(method, options, **networks):
    return cards.card(
        method,
        options,
        source={"name": "mixture", "size": 256},
        networks={"backbone": NET, **networks},
        cycles=2,
        batch_size=32,
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module of rewards, forgotten afterwards."""
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_rewards", None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    return api.fit_card(card("flow_matching", {}), folder=folder, progress=False)


def reward(**arguments):
    return {"name": "import", "call": "own_rewards:right", **arguments}


def test_a_reward_is_named_by_import_path_and_trains(here, teacher, tmp_path):
    config = card("gdmd", {"critic_steps": 1}, reward=reward(scale=2.0))
    with config.unlocked():
        config.networks.reward.scale = 3.0
    found = cards.expand(config)
    assert float(found.params["reward"]["scale"]) == 3.0
    folder = tmp_path / "run"
    fitted = api.fit_card(found, teacher=teacher, folder=folder, progress=False)
    assert fitted.result.step == 2
    # A stored config is read without importing what it names.
    del sys.modules["own_rewards"]
    x = distilljax.sample(folder, steps=1, count=3, progress=False)
    assert x.shape == (3, 2)
    assert "own_rewards" not in sys.modules


def test_a_function_may_bring_parameters(here):
    found = given.make("reward", reward(params=5.0))
    assert float(found.params["scale"]) == 5.0
    assert (
        float(found.network.functions["value"](found.params, jnp.ones((1, 2)))[0]) == 5
    )


def test_a_weak_teacher_is_a_run(teacher, tmp_path):
    weak = {"name": "run", "folder": str(teacher.folder)}
    options = {"autoguidance": True, "guidance": 2.0}
    found = cards.expand(card("ayf_emd", options, weak_teacher=weak))
    assert found.networks["weak_teacher"].path == teacher.network.path
    fitted = api.fit_card(found, teacher=teacher, folder=tmp_path, progress=False)
    assert fitted.result.step == 2


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"call": "own_rewards"}, "must be 'package.module:function', got 'own_rew"),
        ({"call": "no_rewards:f"}, "cannot import 'no_rewards'.*from the folder"),
        ({"call": "own_rewards:rigth"}, "unknown function.*'rigth'.*'right'"),
        ({"call": "own_rewards:number"}, "must return a distilljax.Network.*got int"),
        ({"call": "own_rewards:right", "scales": 1}, "networks.reward:.*'scales'"),
        ({}, "networks.reward:.*call"),
    ],
)
def test_what_is_not_there_is_named(here, section, message):
    with pytest.raises(ValueError, match=message):
        cards.expand(card("gdmd", {}, reward={"name": "import", **section}))


def test_a_run_that_is_not_there_is_named(tmp_path):
    weak = {"name": "run", "folder": str(tmp_path / "none")}
    with pytest.raises(ValueError, match="networks.weak_teacher:.*holds no run"):
        cards.expand(card("ayf_emd", {"autoguidance": True}, weak_teacher=weak))


def test_a_stored_config_runs_no_code_of_its_sender(here, teacher, tmp_path):
    """The student itself is asked for, not imported, where the config came with it."""
    folder = tmp_path / "run"
    api.fit_card(card("flow_matching", {}), folder=folder, progress=False)
    path = folder / "config.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    record["card"]["networks"]["backbone"] = reward()
    path.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match="'student' is named by.*not trusted.*networks="
    ):
        api.load(folder)
    assert "own_rewards" not in sys.modules
