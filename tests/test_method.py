"""Records of methods, their checks and compose."""

import dataclasses

import jax.numpy as jnp
import pytest

from distilljax import method as m
from distilljax.methods import CATALOGUE, build, dmd2, rcm, scm
from distilljax.paths import trigflow
from distilljax.times import Product, Ramp, value_at


def loss(ctx):
    return jnp.zeros((ctx.batch_size,))


def small(name="a", term="one", **changes):
    phase = m.Phase("student", ("student",), (m.Term(term, loss),))
    return m.Method(name, {"student": m.Role()}, (phase,))._replace(**changes)


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
    joined = m.compose(a, b, weights={"b": 0.5})
    assert joined.name == "a+b"
    assert [t.name for t in joined.phases[0].terms] == ["one", "two"]
    assert [t.weight for t in joined.phases[0].terms] == [1.0, 0.5]
    assert joined.batch == {"x0", "pair"}
    assert [c.id for c in joined.cite] == ["a"]


def test_weights_multiply_as_schedules_too():
    a = small()
    phase = a.phases[0]._replace(terms=(m.Term("one", loss, Ramp(10)),))
    joined = m.compose(a._replace(phases=(phase,)), weights={"a": 3.0})
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
    joined = m.compose(first, small("b", "two"))
    assert [t.name for t in joined.phases_at(4)[0].terms] == ["w", "two"]
    assert [t.name for t in joined.phases_at(5)[0].terms] == ["one", "two"]


def test_equal_draws_merge_and_unequal_ones_are_refused():
    a, b = with_draw(small(), Same(1)), with_draw(small("b", "two"), Same(1))
    assert m.compose(a, b).phases[0].draws == {"x": Same(1)}
    with pytest.raises(ValueError, match="draw 'x' differs.*Same"):
        m.compose(a, with_draw(small("b", "two"), Same(2)))


def test_unequal_roles_are_refused_by_name():
    b = small("b", "two", roles={"student": m.Role(init="random")})
    with pytest.raises(ValueError, match="role 'student' differs"):
        m.compose(small(), b)


def test_terms_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"terms of one name twice: \['one'\]"):
        m.compose(small(), small("b"))


def test_unequal_repeats_want_a_word():
    a = small()
    b = small("b", "two")
    b = b._replace(phases=(b.phases[0]._replace(repeat=3),))
    with pytest.raises(ValueError, match="repeats 1 and 3 times"):
        m.compose(a, b)
    assert m.compose(a, b, repeats={"student": 2}).phases[0].repeat == 2
    with pytest.raises(ValueError, match="phase in repeats 'critc'"):
        m.compose(a, b, repeats={"student": 2, "critc": 2})


def test_unknown_weight_names_the_methods():
    with pytest.raises(ValueError, match="method in weights 'c'.*Known: a"):
        m.compose(small(), weights={"c": 1.0})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (small(roles={"teacher": m.Role()}), "needs a role 'student'"),
        (small(stages=(m.Stage(5, ()), m.Stage(5, ()))), "increasing"),
        (small(roles={"student": m.Role(init="nobody")}), "'nobody' is no role"),
        (
            small(roles={"student": m.Role(follow=m.Follow("studnt"))}),
            "Did you mean 'student'",
        ),
        (
            small(phases=(m.Phase("student", ("studnt",), (m.Term("a", loss),)),)),
            "Did you mean 'student'",
        ),
        (
            small(phases=(m.Phase("s", ("student",), (m.Term("a", loss),), repeat=0),)),
            "repeat must be at least 1",
        ),
        (small(phases=(m.Phase("s", ("student",), ()),)), "either trains"),
        (
            small(
                phases=(m.Phase("s", ("student",), (m.Term("a", loss),), fresh=False),)
            ),
            "first phase",
        ),
    ],
)
def test_records_that_disagree_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        m.check(method)


def test_batches_counts_fresh_repeats():
    assert m.batches(dmd2(critic_steps=3).phases) == 4
    reused = tuple(
        p._replace(fresh=p.name != "student") for p in dmd2(critic_steps=3).phases
    )
    assert m.batches(reused) == 3


def test_build_lists_near_methods_and_options():
    with pytest.raises(ValueError, match=r"unknown method 'dmd'.*'dmd2'"):
        build("dmd")
    with pytest.raises(
        ValueError, match=r"option of method 'scm' 'guidence'.*guidance"
    ):
        build("scm", guidence=2.0)


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_row_builds_and_cites(name):
    entry = CATALOGUE[name]
    method = build(name)
    assert method.name == name
    assert entry.cite.id == name
    assert method.cite[0] == entry.cite
    assert entry.cite.authors
    assert entry.cite.year >= 2020
    assert m.check(method) is method


def test_options_of_scm_change_its_players():
    assert set(scm().roles) == {"student", "teacher", "log_weight"}
    assert set(scm(learned_weight=False, teacher=False).roles) == {"student"}
    assert scm().sampling.path == trigflow()
