"""Critics that are told from which time a sample was made, in float64."""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import pytest

from distilljax import networks, oracles, paths
from distilljax.core.draws import Jump, Rollout
from distilljax.diffusion.times import Point
from distilljax.methods import CATALOGUE, build, dmd2, f_distill, gdmd, ladd, sid
from tests import exact
from tests.methods import cases
from tests.methods.played import play

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()
TELLING = [
    name
    for name, entry in CATALOGUE.items()
    if "told_start" in inspect.signature(entry.factory).parameters
]


def test_the_methods_whose_critics_see_several_steps_can_tell():
    assert sorted(TELLING) == ["dmd2", "f_distill", "gdmd", "ladd", "sid"]


@pytest.mark.parametrize("name", TELLING)
def test_only_told_critics_need_a_second_time(name):
    options = cases.CASES[name].options
    plain, told = build(name, **options), build(name, **options, told_start=True)
    assert not any("second_time" in role.needs for role in plain.roles.values())
    telling = {n for n, role in told.roles.items() if "second_time" in role.needs}
    assert telling == set(told.roles) & {"fake_score", "discriminator"} != set()


@pytest.mark.parametrize(
    ("method", "trunk"),
    [
        (ladd(steps=2, law=Point(0.3), told_start=True, r1_weight=1.0), "teacher"),
        (ladd(law=Point(0.3), told_start=True, draw=Jump(Point(0.8))), "teacher"),
        (dmd2(steps=(1, 2), gan_law=Point(0.3), told_start=True), "fake_score"),
        (f_distill(steps=(2,), gan_law=Point(0.3), told_start=True), "fake_score"),
    ],
    ids=["ladd", "jump", "dmd2", "f_distill"],
)
def test_the_discriminator_holds_data_against_the_sample_of_their_place(method, trunk):
    nets = cases.networks()
    taps = networks.taps_shape(nets["backbone"], cases.SHAPE)
    head = networks.head(
        taps, num_classes=cases.CLASSES, width=8, second_time=True, name="told"
    )
    nets["discriminator"] = head
    found = play(method, phase=method.phases[0].name, **nets)
    made = found.context().data["x_start"]

    def logits(ctx, x, suffix, start):
        t = ctx.times(f"t{suffix}", Point(0.3))
        x_t = LINEAR.noise(x, ctx.normal(f"eps{suffix}", x), t)
        seen = ctx.nets[trunk].denoised_and_taps(ctx.cond, x_t, t)[1]
        return ctx.nets.discriminator.call("logits", seen, t, ctx.cond, start)

    def apart(start):
        ctx = found.context().of("tell_apart")
        fake = logits(ctx, ctx.data["x"], "_fake", start)
        real = logits(ctx, ctx.data["x0"], "_real", start)
        if method.name == "ladd":
            return jax.nn.relu(1 + fake) + jax.nn.relu(1 - real)
        return jax.nn.softplus(fake) + jax.nn.softplus(-real)

    values = found.values()
    assert bool(jnp.all(jnp.isfinite(values.get("r1", 0.0))))
    exact.allclose(values["tell_apart"], apart(made), 1e-9)
    assert float(jnp.abs(values["tell_apart"] - apart(made / 2)).max()) > 1e-4


def test_samples_are_told_from_where_they_were_made():
    told = ladd(steps=2, told_start=True)
    data = play(told, batch_size=64, discriminator=told_head()).context().data
    assert set(data["x_start"].tolist()) == {1.0, 0.5}
    plain = play(ladd(steps=2), batch_size=64).context()
    assert "x_start" not in plain.data


def test_a_draw_that_cannot_say_its_times_is_refused():
    with pytest.raises(ValueError, match="told_start=True wants a draw that says"):
        ladd(draw=lambda ctx: ctx.data["x0"], told_start=True)
    ladd(draw=Rollout((2,)), told_start=True)
    ladd(draw=lambda ctx: ctx.data["x0"])


def told_head():
    """The toy head with a second time, on which its logits depend."""
    head = cases.networks()["discriminator"]
    plain = head.functions["logits"]

    def logits(params, features, t, cond=None, s=None):
        return plain(params, features, t, cond) + jnp.cos(s)

    return dataclasses.replace(
        head,
        functions={"logits": logits},
        capabilities=head.capabilities | {"second_time"},
    )


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
