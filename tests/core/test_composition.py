"""Methods joined by compose."""

import dataclasses

import jax.numpy as jnp
import pytest

from distilljax import method as m
from distilljax.core.composition import compose
from distilljax.diffusion.times import Product, Ramp, value_at
from distilljax.methods import rcm
from tests.records import loss, small


@dataclasses.dataclass(frozen=True)
class Same:
    value: int = 0

    def __call__(self, ctx):
        return jnp.full((ctx.batch_size,), self.value)


def with_draw(method, draw):
    phase = method.phases[0]._replace(draws={"x": draw})
    return method._replace(phases=(phase,))


def test_compose_unites_terms_batches_and_citations():
    a = small(batch=frozenset({"x0"}), cite=(m.Citation("a", "A", "X", 1, "v"),))
    b = small("b", "two", batch=frozenset({"pair"}))
    joined = compose(a, b, weights={"b": 0.5})
    assert joined.name == "a+b"
    assert [t.name for t in joined.phases[0].terms] == ["one", "two"]
    assert [t.weight for t in joined.phases[0].terms] == [1.0, 0.5]
    assert joined.batch == {"x0", "pair"}
    assert [c.id for c in joined.cite] == ["a"]


def test_weights_multiply_as_schedules_too():
    a = small()
    phase = a.phases[0]._replace(terms=(m.Term("one", loss, Ramp(10)),))
    joined = compose(a._replace(phases=(phase,)), weights={"a": 3.0})
    weight = joined.phases[0].terms[0].weight
    assert weight == Product(3.0, Ramp(10))
    assert float(value_at(weight, 5)) == pytest.approx(1.5)


def test_critics_run_before_and_keep_their_weight():
    joined = rcm(warmup=0, scm_weight=100.0)
    assert [p.name for p in joined.phases] == ["fake_score", "student"]
    critic, student = joined.phases
    assert [t.weight for t in critic.terms] == [1.0]
    assert [t.weight for t in student.terms] == [100.0, 1.0]


def test_rcm_warms_up_on_consistency_alone():
    joined = rcm(warmup=7)
    assert [p.name for p in joined.phases_at(6)] == ["student"]
    assert [t.name for t in joined.phases_at(6)[0].terms] == ["tangent"]
    assert [p.name for p in joined.phases_at(7)] == ["fake_score", "student"]


def test_compose_merges_stages_of_both():
    first = small()._replace(
        stages=(m.Stage(5, (m.Phase("student", ("student",), (m.Term("w", loss),)),)),)
    )
    joined = compose(first, small("b", "two"))
    assert [t.name for t in joined.phases_at(4)[0].terms] == ["w", "two"]
    assert [t.name for t in joined.phases_at(5)[0].terms] == ["one", "two"]


def test_equal_draws_merge_and_unequal_ones_are_refused():
    a, b = with_draw(small(), Same(1)), with_draw(small("b", "two"), Same(1))
    assert compose(a, b).phases[0].draws == {"x": Same(1)}
    with pytest.raises(ValueError, match="draw 'x' differs.*Same"):
        compose(a, with_draw(small("b", "two"), Same(2)))


def test_unequal_roles_are_refused_by_name():
    b = small("b", "two", roles={"student": m.Role(init="random")})
    with pytest.raises(ValueError, match="role 'student' differs"):
        compose(small(), b)


def test_terms_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"terms of one name twice: \['one'\]"):
        compose(small(), small("b"))


def test_one_critic_is_fitted_once():
    def critic(name, fit=loss):
        phase = m.Phase("fake", ("fake",), (m.Term("fit", fit),))
        method = small(name, f"match_{name}")
        roles = {"student": m.Role(), "fake": m.Role()}
        return method._replace(roles=roles, phases=(phase, *method.phases))

    fake, student = compose(critic("a"), critic("b")).phases
    assert [t.name for t in fake.terms] == ["fit"]
    assert [t.name for t in student.terms] == ["match_a", "match_b"]
    with pytest.raises(ValueError, match=r"terms of one name twice: \['fit'\]"):
        compose(critic("a"), critic("b", lambda ctx: loss(ctx) + 1.0))


def test_unequal_repeats_want_a_word():
    a = small()
    b = small("b", "two")
    b = b._replace(phases=(b.phases[0]._replace(repeat=3),))
    with pytest.raises(ValueError, match="repeats 1 and 3 times"):
        compose(a, b)
    assert compose(a, b, repeats={"student": 2}).phases[0].repeat == 2
    with pytest.raises(ValueError, match="phase in repeats 'critc'"):
        compose(a, b, repeats={"student": 2, "critc": 2})


def test_unknown_weight_names_the_methods():
    with pytest.raises(ValueError, match="method in weights 'c'.*Known: a"):
        compose(small(), weights={"c": 1.0})
