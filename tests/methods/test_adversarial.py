"""LADD: hinge losses on the frozen teacher's features, and its points of rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks, paths
from distilljax.diffusion.times import Point
from distilljax.methods import f_distill, ladd
from tests import exact, toy
from tests.methods import cases
from tests.methods.played import exact_jumper, play, vanishes

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()
AT = Point(0.4)


def judged(found, term, suffix, x):
    """Logits that a term sees of ``x`` at its own point."""
    ctx = found.context().of(term)
    t = ctx.times(f"t{suffix}", AT)
    x_t = LINEAR.noise(x, ctx.normal(f"eps{suffix}", x), t)
    taps = ctx.nets.teacher.denoised_and_taps(ctx.cond, x_t, t)[1]
    return ctx.nets.discriminator.call("logits", taps, t, ctx.cond)


@pytest.mark.parametrize("hinge", [True, False])
def test_the_generator_sees_the_teachers_features_of_its_sample(hinge):
    found = play(ladd(law=AT, hinge=hinge))
    x = found.context().data["x"]
    logits = judged(found, "fool", "", x)
    wanted = -logits if hinge else jax.nn.softplus(-logits)
    exact.allclose(found.values()["fool"], wanted, 1e-9)


@pytest.mark.parametrize("hinge", [True, False])
def test_the_discriminator_sees_both_noised_apart(hinge):
    found = play(ladd(law=AT, hinge=hinge), phase="discriminator")
    ctx = found.context()
    fake = judged(found, "tell_apart", "_fake", ctx.data["x"])
    real = judged(found, "tell_apart", "_real", ctx.data["x0"])
    if hinge:
        wanted = jax.nn.relu(1 + fake) + jax.nn.relu(1 - real)
    else:
        wanted = jax.nn.softplus(fake) + jax.nn.softplus(-real)
    exact.allclose(found.values()["tell_apart"], wanted, 1e-9)


def test_only_the_declared_roles_move():
    method = ladd()
    assert set(play(method).gradients()) == {"student"}
    assert set(play(method, phase="discriminator").gradients()) == {"discriminator"}
    assert "fake_score" not in method.roles


def test_a_discriminator_that_knows_nothing_moves_nobody():
    def constant(params, features, t, cond=None):
        return jnp.zeros_like(features[0][:, 0])

    head = cases.networks()["discriminator"]
    blind = dataclasses.replace(head, functions={"logits": constant})
    vanishes(play(ladd(), discriminator=blind).gradients())
    with pytest.raises(AssertionError):
        vanishes(play(ladd()).gradients())


def test_the_discriminator_rests_when_samples_are_distributed_as_data():
    oracle = exact.gaussian()
    head = cases.networks()["discriminator"]
    zero = {"discriminator": jax.tree.map(jnp.zeros_like, head.init(jax.random.key(0)))}

    def largest(shift):
        found = play(
            ladd(law=Point(0.2)),
            phase="discriminator",
            batch_size=8192,
            given=zero,
            data={"x0": oracle.sample(jax.random.key(3), 8192) + shift},
            student=exact_jumper(oracle._replace(mean=oracle.mean + 2 * shift), LINEAR),
        )
        grads = found.gradients()["discriminator"]
        return max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))

    assert largest(0.0) < 0.05
    assert largest(1.0) > 0.15


def test_the_penalty_nears_the_squared_gradient_of_the_logit():
    """At ``std -> 0`` its mean over perturbations is ``|grad l|^2``."""
    weight = jnp.asarray([0.6, -1.1])

    def logits(params, features, t, cond=None):
        return features @ weight

    base = toy.mlp(cases.SHAPE, second_time=True, num_classes=cases.CLASSES)

    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        out = base.apply(params, x, t, cond, s)
        return (out, x) if taps else out

    head = cases.networks()["discriminator"]
    found = play(
        ladd(r1_weight=1.0, r1_std=0.3),
        phase="discriminator",
        batch_size=8192,
        teacher=dataclasses.replace(base, apply=apply),
        discriminator=dataclasses.replace(head, functions={"logits": logits}),
    )
    # Linear logits: exact for every std, up to the average over the perturbations.
    mean = float(jnp.mean(found.values()["r1"]))
    assert abs(mean / float(weight @ weight) - 1.0) < 0.05


@pytest.mark.parametrize("build", [ladd, f_distill])
def test_heads_with_a_logit_per_position_are_averaged(build):
    nets = cases.networks()
    taps = networks.taps_shape(nets["backbone"], cases.SHAPE)
    heads = networks.head(taps, kind="patches", num_classes=cases.CLASSES, width=8)
    method = build()
    critic = method.phases[0].name
    apart = play(method, phase=critic, discriminator=heads).values()["tell_apart"]
    fool = play(method, discriminator=heads).values()["fool"]
    assert apart.shape == fool.shape == (16,)

    def averaged(*args):
        return jnp.mean(heads.functions["logits"](*args), 1)

    one = dataclasses.replace(heads, functions={"logits": averaged})
    single = play(method, discriminator=one).values()["fool"]
    # The mean of the logits is that of the hinge generator's values, which are linear.
    assert bool(jnp.allclose(fool, single, rtol=1e-9)) == (build is ladd)


def test_a_teacher_without_features_is_refused():
    base = toy.mlp(cases.SHAPE, second_time=True, num_classes=cases.CLASSES)
    bare = dataclasses.replace(base, capabilities=base.capabilities - {"taps"})
    with pytest.raises(ValueError, match="'teacher' needs a network with taps"):
        play(ladd(), teacher=bare)


def test_shares_settle_how_often_a_start_time_is_trained():
    seen = []
    base = toy.mlp(cases.SHAPE, second_time=True, num_classes=cases.CLASSES)

    def apply(params, x, t, *rest, **options):
        seen.append(t)
        return base.apply(params, x, t, *rest, **options)

    spy = dataclasses.replace(base, apply=apply)
    play(ladd(steps=2, shares=(0.9, 0.1)), batch_size=4096, student=spy).context()
    (t,) = seen
    assert abs(float(jnp.mean(t == 1.0)) - 0.9) < 0.02
    np.testing.assert_array_equal(np.unique(t), [0.5, 1.0])
    with pytest.raises(ValueError, match="shares must be 2 probabilities"):
        ladd(steps=2, shares=(0.9, 0.2))
