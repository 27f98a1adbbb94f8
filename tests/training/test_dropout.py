"""Dropout: every role that trains drops units, frozen roles never do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import methods
from distilljax.methods import CATALOGUE
from distilljax.networks import policy
from distilljax.networks.lora import lora, with_lora
from distilljax.training.checks import check_batch
from distilljax.training.update import Update
from tests import toy
from tests.methods import cases

# Roles whose network stands for the student at another point of one trajectory.
SHARE = {"cm_cd", "cm_ct", "ict", "ect", "lcm", "ctm"}


class Recorder:
    """A network that records, while it is traced, the keys that it is called with."""

    def __init__(self, network):
        self.plain, self.keys = network, []

    def network(self):
        def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
            self.keys.append(rng)
            out = self.plain.apply(params, x, t, cond, s, taps=taps)
            if rng is None:
                return out
            noise = 0.1 * jax.random.normal(rng, x.shape)
            return (out[0] + noise, out[1]) if taps else out + noise

        return dataclasses.replace(
            self.plain,
            apply=apply,
            capabilities=self.plain.capabilities | {"dropout"},
        )


def record(name):
    """Recorders by role after every phase of a method was traced."""
    method = cases.method(name)
    backbone = toy.mlp(cases.SHAPE, second_time=True, num_classes=cases.CLASSES)
    recorders, nets = {}, cases.networks()
    for role, player in method.roles.items():
        if player.network in ("backbone", "policy"):
            recorders[role] = Recorder(backbone)
            network = recorders[role].network()
            if player.network == "policy":
                network = policy(network, cases.SHAPE, components=4)
            nets[role] = network
    setup, state, frozen = cases.setup(name, nets=nets)
    for recorder in recorders.values():
        recorder.keys.clear()  # what was traced to make parameters
    data = {k: v[0, 0] for k, v in cases.batch(1).items()}
    for phase in (p for p in setup.method.phases if p.terms):
        update = Update(setup, phase, state, frozen, {})
        trained = {r: state.params[r] for r in phase.trains}
        jax.eval_shape(
            lambda key, update=update, trained=trained: update.terms(
                trained, data, state.memory, key, 0, {}
            )[0],
            update.key,
        )
    return setup, recorders


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_roles_that_train_get_a_key_and_others_none(name):
    setup, recorders = record(name)
    trained = setup.method.trained
    for role, recorder in recorders.items():
        given = [key is not None for key in recorder.keys]
        if role in trained:
            assert all(given), f"{role} of {name} trained in evaluation mode"
        elif role == "target" and name in SHARE:
            assert all(given)
        else:
            assert not any(given), f"{role} of {name} is frozen and dropped units"
    assert any(recorders[r].keys for r in trained if r in recorders)


def test_a_target_drops_what_its_student_drops():
    """The student's prediction with its own parameters as target: no difference."""
    built = methods.cm_ct(init="teacher", target_decay=0.0)
    net = toy.mlp(cases.SHAPE, num_classes=cases.CLASSES)
    student = Recorder(net).network()
    setup, state, frozen = cases.setup(
        "cm_ct", built=built, nets=cases.networks(backbone=student)
    )
    update = Update(setup, setup.method.phases[0], state, frozen, {})
    data = {k: v[0, 0] for k, v in cases.batch(1).items()}
    params = {"student": state.params["student"]}
    ctx = update.context(params, data, {}, update.key, 0).of("agree")
    x, t = data["x0"], jnp.full(len(data["x0"]), 0.5)
    own = ctx.nets.student.denoiser(data["cond"])(x, t)
    other = ctx.nets.target.like(ctx.nets.student).denoiser(data["cond"])(x, t)
    np.testing.assert_array_equal(own, other)
    again = update.context(params, data, {}, update.key, 0).of("other")
    assert jnp.abs(again.nets.student.denoiser(data["cond"])(x, t) - own).max() > 1e-3


def test_an_adapted_student_drops_and_its_followers_do_not():
    method = with_lora(cases.method("cm_cd"), ("student",))
    backbone = Recorder(toy.mlp(cases.SHAPE, num_classes=cases.CLASSES)).network()
    nets = cases.networks(backbone=backbone, lora=lora(backbone, rank=1, match="w$"))
    setup, _, _ = cases.setup("cm_cd", built=method, nets=nets)
    assert setup.with_dropout == {"student"}


def test_dropout_that_never_runs_is_refused():
    """In apply, and in another function of the network."""
    mute = toy.mlp(cases.SHAPE, num_classes=cases.CLASSES)
    mute = dataclasses.replace(mute, capabilities=mute.capabilities | {"dropout"})
    setup, _, _ = cases.setup("flow_matching", nets=cases.networks(backbone=mute))
    first = {k: np.asarray(v) for k, v in cases.batch(1).items()}
    with pytest.raises(ValueError, match="never reads rng"):
        check_batch(setup, first)
    check_batch(cases.setup("flow_matching")[0], first)

    head = toy.head(num_classes=cases.CLASSES)
    head = dataclasses.replace(head, capabilities=frozenset({"dropout"}))
    nets = cases.networks(discriminator=head)
    setup, state, frozen = cases.setup("dmd2", nets=nets)
    update = Update(setup, setup.method.phases[0], state, frozen, {})
    trained = {r: state.params[r] for r in setup.method.phases[0].trains}
    data = {k: v[0, 0] for k, v in cases.batch(1).items()}
    with pytest.raises(ValueError, match="takes no rng="):
        update.terms(trained, data, {}, update.key, 0, {})
