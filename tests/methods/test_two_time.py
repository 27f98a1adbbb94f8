"""Align Your Flow: formulas, points of rest and reductions."""

import jax
import jax.numpy as jnp
import pytest

from distilljax import oracles, paths
from distilljax.diffusion.times import Pair
from distilljax.methods import ayf_emd, ayf_lmd
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


def half_mean_square(x):
    return 0.5 * jnp.mean(x**2, -1)


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
