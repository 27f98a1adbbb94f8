"""Students that are told their guidance scale: one scale for teacher and student."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.core.draws import Among, Scales
from distilljax.methods import ayf_lmd, ladd, lcm, rcm, sana_sprint, scm
from distilljax.sampling.generation import student_sampler
from tests import exact, toy
from tests.methods import cases
from tests.methods.played import play

pytestmark = pytest.mark.usefixtures("x64")

SCM = {"learned_weight": False, "warmup": 0.5}
METHODS = {
    "lcm": (lcm, {}),
    "scm": (scm, SCM),
    "ayf_lmd": (ayf_lmd, {}),
}


def listener(seen):
    """The tests' network, which writes down the scales that it is told."""
    base = toy.mlp(cases.SHAPE, second_time=True, num_classes=cases.CLASSES)

    def apply(params, x, t, cond=None, s=None, **options):
        seen.append(cond["guidance"])
        return base.apply(params, x, t, cond["cond"], s, **options)

    return dataclasses.replace(
        base, apply=apply, capabilities=base.capabilities | {"guidance"}
    )


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_student_is_told_the_scale_that_guides_its_teacher(name):
    build, options = METHODS[name]
    seen = []
    nets = {"student": listener(seen), "target": listener(seen)}
    method = build(guidance=Among((2.5, 2.5)), embed=True, **options)
    found = play(method, **nets).values()
    assert len(seen) == 1 + (name == "lcm")
    for scale in seen:
        np.testing.assert_array_equal(scale, jnp.full(16, 2.5, scale.dtype))
    # The listener does not use what it is told.
    number = play(build(guidance=2.5, **options)).values()
    for term in found:
        exact.allclose(found[term], number[term], 1e-6)


@pytest.mark.parametrize("guidance", [(1.0, 3.0), Among((4.0, 4.5, 5.0)), 4.0])
def test_scales_are_drawn_per_sample_and_shared_by_what_is_composed(guidance):
    seen = []
    method = sana_sprint(guidance=guidance, embed=True, warmup=0, scm_options=SCM)
    for phase in ("student", "discriminator"):
        seen.clear()
        found = play(method, phase=phase, student=listener(seen))
        found.values()
        wanted = found.context().data["guidance"]
        assert wanted.shape == (16,)
        for scale in seen:
            np.testing.assert_array_equal(scale, wanted)
        if isinstance(guidance, Among):
            assert {float(w) for w in wanted} <= set(guidance.values)
            assert len({float(w) for w in wanted}) > 1
        elif isinstance(guidance, tuple):
            assert 1.0 <= float(wanted.min()) < float(wanted.max()) <= 3.0


def test_without_embed_a_range_is_drawn_but_not_told():
    seen = []
    with pytest.raises(TypeError):
        play(scm(guidance=(1.0, 3.0), **SCM), student=listener(seen)).values()
    method = scm(guidance=(1.0, 3.0), **SCM)
    assert not method.phases[0].draws
    found = play(method).values()["tangent"]
    low, high = (play(scm(guidance=w, **SCM)).values()["tangent"] for w in (1.0, 3.0))
    assert not np.allclose(found, low, rtol=1e-3)
    assert not np.allclose(found, high, rtol=1e-3)


def test_a_network_that_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="'student' needs .* guidance, and 'mlp'"):
        play(scm(guidance=(1.0, 3.0), embed=True, **SCM))
    with pytest.raises(ValueError, match="embed=True tells the student the scale"):
        scm(teacher=False, embed=True)
    # Its critic would see samples of a student that is told nothing.
    with pytest.raises(ValueError, match=r"every phase .*\['fake_score'\] draw none"):
        rcm(scm_options={"embed": True})


def test_a_told_student_is_sampled_at_any_scale():
    seen = []
    net = listener(seen)
    params = net.init(jax.random.key(0))
    eps, cond = exact.normal(0, 4, 2), jnp.arange(4) % 3
    method = lcm(guidance=(3.0, 15.0), embed=True)
    for scale, wanted in ((None, 9.0), (2.0, 2.0)):
        seen.clear()
        run = student_sampler(method, net, 1, guidance=scale)
        run(params, eps, cond, jax.random.key(0))
        np.testing.assert_array_equal(seen[0], jnp.full(4, wanted))
    with pytest.raises(ValueError, match="'lcm' is told no guidance scale, got guid"):
        student_sampler(lcm(), net, 1, guidance=2.0)
    assert Scales(Among((4.0, 4.5, 5.0))).middle == 4.5
    assert Scales(3.0).middle == 3.0
    assert ladd().sampling.guidance is None
    assert sana_sprint(embed=True, guidance=4.0).sampling.guidance == 4.0
