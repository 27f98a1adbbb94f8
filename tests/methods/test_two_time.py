"""Shortcut models and Align Your Flow: formulas, points of rest and reductions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import oracles, paths
from distilljax.methods import ayf_emd, ayf_lmd, shortcut
from distilljax.times import Pair
from tests import exact
from tests.methods import cases
from tests.methods.played import play
from tests.test_docs import blocks

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()
JUMPS = Pair(diagonal=0.0)
AYF = {"ayf_emd": (ayf_emd, "eulerian"), "ayf_lmd": (ayf_lmd, "lagrangian")}
PLAIN = {"ayf_emd": {"warmup": 1.0, "tangent": None}, "ayf_lmd": {"tangent": None}}


def bound(found, role):
    return found.context().nets[role]


def tree(found, levels, share):
    """What `shortcut` draws: ``(level, t, length, x_t, noise - x0)``."""
    ctx = found.context().of("halve")
    level = ctx.integers("level", levels)
    level = jnp.where(ctx.uniform("share") < share, level, levels)
    h = 2.0**-level
    t = 1.0 - h * jnp.floor(ctx.uniform("place") / h)
    x0, eps = found.data["x0"], ctx.normal("eps")
    return level, t, h, LINEAR.noise(x0, eps, t), eps - x0


def half_mean_square(x):
    return 0.5 * jnp.mean(x**2, -1)


def test_shortcut_without_jumps_is_flow_matching():
    found = play(shortcut(share=0.0, teacher=False))
    _, t, _, x_t, v = tree(found, 7, 0.0)
    u = bound(found, "student").apply(x_t, t, found.data["cond"], t)
    exact.allclose(found.values()["halve"], half_mean_square(u - v))


@pytest.mark.parametrize("teacher", [True, False])
def test_a_shortcut_is_the_mean_of_its_halves(teacher):
    levels, share = 3, 0.7
    found = play(shortcut(levels=levels, share=share, teacher=teacher), batch_size=64)
    level, t, h, x_t, v = tree(found, levels, share)
    cond = found.data["cond"]
    if teacher:
        # Times of a grid are float32 numbers.
        v = bound(found, "teacher").apply(x_t, t.astype(jnp.float32), cond)
    net = bound(found, "target")
    half, wide = 0.5 * h, 0.5 * h[:, None]
    # The smallest halves are velocities.
    told = jnp.where(level == levels - 1, 0.0, half)
    first = net.apply(x_t, t, cond, t - told)
    middle = t - half
    second = net.apply(x_t - wide * first, middle, cond, middle - told)
    still = level == levels
    u = bound(found, "student").apply(x_t, t, cond, jnp.where(still, t, t - h))
    target = jnp.where(still[:, None], v, 0.5 * (first + second))
    exact.allclose(found.values()["halve"], half_mean_square(u - target), 1e-10)
    assert {int(n) for n in level} == {0, 1, 2, 3}


def test_shortcut_rests_on_the_exact_map_but_for_the_smallest_halves():
    oracle, levels = exact.gaussian(), 4
    jumper = oracles.network(oracle, LINEAR, two_time=True)
    nets = {
        "student": jumper,
        "target": jumper,
        "teacher": oracles.network(oracle, LINEAR),
    }
    found = play(shortcut(levels=levels, share=0.7), batch_size=64, **nets)
    level = tree(found, levels, 0.7)[0]
    values = found.values()["halve"]
    assert float(values[level != levels - 1].max()) < 1e-20
    assert float(values[level == levels - 1].min()) > 1e-10
    wrong = oracles.network(oracles.Gaussian(0.0, 1.0), LINEAR, two_time=True)
    off = play(
        shortcut(levels=levels, share=0.7), batch_size=64, **{**nets, "student": wrong}
    )
    assert float(off.values()["halve"][level != levels - 1].min()) > 1e-6


def test_shortcut_without_a_teacher_guides_the_smallest_halves_alone():
    def run(levels, guidance):
        return play(
            shortcut(levels=levels, share=1.0, teacher=False, guidance=guidance),
            batch_size=64,
        )

    found = run(1, 3.0)
    _, t, _, x_t, _ = tree(found, 1, 1.0)
    cond, net = found.data["cond"], bound(found, "target")
    null = jnp.full_like(cond, cases.CLASSES)

    def guided(x, t):
        without = net.apply(x, t, null, t)
        return without + 3.0 * (net.apply(x, t, cond, t) - without)

    first = guided(x_t, t)
    second = guided(x_t - 0.5 * first, t - 0.5)
    u = bound(found, "student").apply(x_t, t, cond, t - 1.0)
    wanted = half_mean_square(u - 0.5 * (first + second))
    exact.allclose(found.values()["halve"], wanted, 1e-10)
    plain, strong = (run(3, w).values()["halve"] for w in (1.0, 3.0))
    longer = tree(run(3, 3.0), 3, 1.0)[0] < 2
    exact.allclose(strong[longer], plain[longer])
    assert not np.any(np.isclose(strong[~longer], plain[~longer], rtol=1e-6))


def drawn(found, name, law):
    """What `ayf_emd` and `ayf_lmd` draw: ``(x_t, t, s)``."""
    ctx = found.context().of(AYF[name][1])
    t, s = ctx.pair("times", law, LINEAR)
    return LINEAR.noise(found.data["x0"], ctx.normal("eps"), t), t, s


def outputs(found, name, law):
    """``(x_t, t, s, u, network of (x, t, s))`` of the student."""
    x_t, t, s = drawn(found, name, law)
    cond, net = found.data["cond"], bound(found, "student")

    def u(x, t, s):
        return net.apply(x, t, cond, s)

    return x_t, t, s, u(x_t, t, s), u


@pytest.mark.parametrize("name", sorted(AYF))
def test_ayf_on_the_diagonal_is_flow_matching(name):
    law = Pair(diagonal=1.0)
    found = play(AYF[name][0](law=law, **PLAIN[name]))
    x_t, t, _, u, _ = outputs(found, name, law)
    v = bound(found, "teacher").apply(x_t, t, found.data["cond"])
    exact.allclose(found.values()[AYF[name][1]], half_mean_square(u - v), 1e-10)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_the_tangent_of_ayf_emd(ratio):
    """``F - v + r (t - s) dF/dt``, the target of MeanFlow at ``r = 1``."""
    found = play(ayf_emd(law=JUMPS, warmup=ratio))
    x_t, t, s, u, net = outputs(found, "ayf_emd", JUMPS)
    v = bound(found, "teacher").apply(x_t, t, found.data["cond"])
    h = 1e-6
    rate = (net(x_t + h * v, t + h, s) - net(x_t - h * v, t - h, s)) / (2 * h)
    g = u - v + ratio * (t - s)[:, None] * rate
    size = jnp.linalg.norm(g, axis=-1, keepdims=True)
    wanted = half_mean_square(g / (size + 0.1))
    exact.allclose(found.values()["eulerian"], wanted, 1e-7)


def test_ayf_emd_to_the_data_has_the_tangent_of_consistency():
    law = Pair(diagonal=0.0, to_data=1.0)
    found = play(ayf_emd(law=law, **PLAIN["ayf_emd"]))
    x_t, t, _, _, _ = outputs(found, "ayf_emd", law)
    cond = found.data["cond"]
    v = bound(found, "teacher").velocity(cond)(x_t, t)
    f = bound(found, "student").flow_map(cond)
    h = 1e-5
    rate = (f(x_t + h * v, t + h, 0.0) - f(x_t - h * v, t - h, 0.0)) / (2 * h)
    exact.allclose(found.values()["eulerian"], half_mean_square(rate), 1e-7)


def test_the_target_of_ayf_lmd():
    """``v(f, s) + (t - s) dF/ds`` with the teacher at the student's own point."""
    found = play(ayf_lmd(law=JUMPS, tangent=None))
    x_t, t, s, u, net = outputs(found, "ayf_lmd", JUMPS)
    end = x_t + (s - t)[:, None] * u
    v = bound(found, "teacher").apply(end, s, found.data["cond"])
    h = 1e-6
    rate = (net(x_t, t, s + h) - net(x_t, t, s - h)) / (2 * h)
    target = v + (t - s)[:, None] * rate
    wanted = half_mean_square(u - target)
    exact.allclose(found.values()["lagrangian"], wanted, 1e-7)


@pytest.mark.parametrize("path", [LINEAR, paths.trigflow(0.5)])
@pytest.mark.parametrize("name", sorted(AYF))
def test_ayf_rests_on_the_exact_map(name, path):
    oracle = exact.gaussian()
    method = AYF[name][0](path=path, **PLAIN[name])
    teacher = oracles.network(oracle, path)

    def values(data):
        student = oracles.network(data, path, two_time=True)
        return play(method, student=student, teacher=teacher).values()[AYF[name][1]]

    assert float(values(oracle).max()) < 1e-20
    assert float(values(oracles.Gaussian(0.0, 1.0)).max()) > 1e-3


@pytest.mark.parametrize("name", sorted(AYF))
def test_ayf_is_guided_by_a_weak_teacher(name):
    law = Pair(diagonal=1.0)
    options = {"law": law, "autoguidance": True, **PLAIN[name]}
    term = AYF[name][1]
    weak = cases.networks()["backbone"].init(jax.random.key(7))
    found = play(AYF[name][0](guidance=2.0, **options), given={"weak_teacher": weak})
    x_t, t, _, u, _ = outputs(found, name, law)
    cond = found.data["cond"]
    good, bad = (
        bound(found, r).apply(x_t, t, cond) for r in ("teacher", "weak_teacher")
    )
    wanted = half_mean_square(u - (bad + 2.0 * (good - bad)))
    exact.allclose(found.values()[term], wanted, 1e-10)
    # A weak teacher that is the teacher guides nowhere.
    idle, plain = (
        play(AYF[name][0](guidance=w, **options)).values()[term] for w in (2.0, 1.0)
    )
    exact.allclose(idle, plain, 1e-12)


def test_the_registered_ayf_lmd_is_that_of_the_documents():
    space = {}
    exec(blocks("docs/adding_a_method.md", "## The function"), space)
    shown, own = space["ayf_lmd"](guidance=1.5), ayf_lmd(guidance=1.5)
    assert (shown.name, shown.roles, shown.sampling) == (
        own.name,
        own.roles,
        own.sampling,
    )
    assert shown.cite[0].venue == own.cite[0].venue
    exact.allclose(play(shown).values()["lagrangian"], play(own).values()["lagrangian"])


def test_a_normalised_tangent_of_ayf_lmd_is_shorter_than_one():
    values = play(ayf_lmd()).values()["lagrangian"]
    assert bool(jnp.all((values > 0) & (values < 0.25)))
