"""Methods joined by compose."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from distilljax import method as m
from distilljax.core.binding import Nets
from distilljax.core.composition import compose
from distilljax.core.context import Context
from distilljax.diffusion.times import Product, Ramp, value_at
from distilljax.methods import rcm
from tests.records import loss, small


@dataclasses.dataclass(frozen=True)
class Same:
    value: int = 0

    def __call__(self, ctx):
        return jnp.full((ctx.batch_size,), self.value)


def with_draw(method, draw):
    """The method with a draw that its term returns."""
    term = method.phases[0].terms[0]._replace(loss=lambda ctx: ctx.data["x"])
    phase = method.phases[0]._replace(draws={"x": draw}, terms=(term,))
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


def test_equal_draws_are_one_and_unequal_ones_stand_side_by_side():
    a, b = with_draw(small(), Same(1)), with_draw(small("b", "two"), Same(1))
    assert compose(a, b).phases[0].draws == {"x": Same(1)}
    joined = compose(a, with_draw(small("b", "two"), Same(2)))
    first, second = joined.phases[0].draws.items()
    assert first == ("x", Same(1))
    assert (second[0], second[1](seen({}))) == ("b/x", 2)
    # The later method's term finds its own draw under the name that it knows.
    data = {"x": 1, "b/x": 2, "x0": 0}
    assert joined.phases[0].terms[1].loss(seen(data)) == 2
    given = compose(a, with_draw(small("b", "two"), Same(2)), draws={"x": Same(3)})
    assert given.phases[0].draws == {"x": Same(3)}
    with pytest.raises(ValueError, match="draw in draws 'z'"):
        compose(a, b, draws={"z": Same(3)})


@dataclasses.dataclass(frozen=True)
class Doubled:
    """A draw that reads the one before it."""

    def __call__(self, ctx):
        return 2 * ctx.data["x"]


def test_a_draw_that_reads_a_differing_one_is_own_too():
    def method(name, value):
        made = with_draw(small(name, name), Same(value))
        phase = made.phases[0]
        term = phase.terms[0]._replace(loss=lambda ctx: ctx.data["y"])
        draws = {**phase.draws, "y": Doubled()}
        return made._replace(phases=(phase._replace(draws=draws, terms=(term,)),))

    assert set(compose(method("a", 1), method("b", 1)).phases[0].draws) == {"x", "y"}
    phase = compose(method("a", 1), method("b", 2)).phases[0]
    assert list(phase.draws) == ["x", "y", "b/x", "b/y"]
    ctx = seen({})
    for name, draw in phase.draws.items():
        ctx = dataclasses.replace(ctx, data={**ctx.data, name: draw(ctx)})
    assert [int(term.loss(ctx)[0]) for term in phase.terms] == [2, 4]


def seen(data):
    """A context with data alone, as `with_draw`'s term reads it."""
    return Context(Nets({}), data, 0, 0, {}, jax.random.key(0), 1, (1,))


@pytest.mark.parametrize(
    ("roles", "init"),
    [(("teacher", "random"), "teacher"), (("random", "random"), "random")],
)
def test_the_student_starts_from_the_teacher_if_one_does(roles, init):
    a, b = (
        small(
            name, name, roles={"student": m.Role(init=start, needs=frozenset({need}))}
        )
        for name, start, need in zip("ab", roles, ("jvp", "taps"), strict=True)
    )
    for pair in ((a, b), (b, a)):
        found = compose(*pair).roles["student"]
        assert found.init == init
        assert found.needs == {"jvp", "taps"}


def test_students_that_cannot_be_one_are_refused_with_the_reason():
    b = small("b", "two", roles={"student": m.Role("policy")})
    with pytest.raises(ValueError, match="network of the student.*different things"):
        compose(small(), b)
    record = m.Role("policy")
    assert compose(small(), b, roles={"student": record}).roles["student"] == record
    kept = m.Role(follow=m.Follow("other"))
    b = small("b", "two", roles={"student": kept, "other": m.Role()})
    with pytest.raises(ValueError, match="follow of the student differs"):
        compose(small(), b)


def test_terms_of_one_name_stand_under_the_name_of_their_method():
    joined = compose(small(), small("b"), small("c"))
    assert [t.name for t in joined.phases[0].terms] == ["one", "b/one", "c/one"]
    with pytest.raises(ValueError, match="two methods are called 'a'"):
        compose(small(), small())


def with_critic(name, fit=loss, repeat=1, **extra):
    phase = m.Phase("fake", ("fake",), (m.Term("fit", fit),), repeat=repeat, **extra)
    method = small(name, f"match_{name}")
    roles = {"student": m.Role(), "fake": m.Role()}
    return method._replace(roles=roles, phases=(phase, *method.phases))


def test_critics_fitted_alike_are_one_and_others_stand_apart():
    fake, student = compose(with_critic("a"), with_critic("b", repeat=5)).phases
    assert [t.name for t in fake.terms] == ["fit"]
    assert fake.repeat == 5
    assert [t.name for t in student.terms] == ["match_a", "match_b"]
    joined = compose(with_critic("a"), with_critic("b", lambda ctx: loss(ctx) + 1.0))
    assert [p.name for p in joined.phases] == ["b/fake", "fake", "student"]
    assert [p.trains for p in joined.phases[:2]] == [("b_fake",), ("fake",)]
    assert set(joined.roles) == {"student", "fake", "b_fake"}
    joined = compose(
        with_critic("a"),
        with_critic("b", draws={"x": Same(1)}),
        with_critic("c", draws={"x": Same(2)}),
        rename={"a": {"fake": "first"}},
    )
    assert set(joined.roles) == {"student", "first", "fake", "c_fake"}
    assert [p.name for p in joined.phases] == ["c/fake", "fake", "first", "student"]
    with pytest.raises(ValueError, match="role of 'a' in rename 'fakes'"):
        compose(with_critic("a"), rename={"a": {"fakes": "first"}})


def test_what_follows_or_starts_from_an_own_role_is_own_too():
    def method(name, fit=loss):
        made = with_critic(name, fit)
        slow = m.Role(init="fake", follow=m.Follow("fake", 0.9, after="fake"))
        return made._replace(roles={**made.roles, "slow": slow})

    joined = compose(method("a"), method("b", lambda ctx: loss(ctx) + 1.0))
    assert joined.roles["b_slow"] == m.Role(
        init="b_fake", follow=m.Follow("b_fake", 0.9, after="b/fake")
    )
    assert joined.roles["slow"].follow.of == "fake"


def test_a_teacher_that_follows_stands_beside_the_fixed_one():
    def taught(name, **role):
        roles = {"student": m.Role(), "teacher": m.Role(init="given", **role)}
        return small(name, name, roles=roles)

    moves = taught("moves", follow=m.Follow("student", 0.0, 100))
    for pair in ((moves, taught("fixed")), (taught("fixed"), moves)):
        roles = compose(*pair).roles
        assert roles["teacher"] == m.Role(init="given")
        assert roles["moves_teacher"].init == "teacher"
        assert roles["moves_teacher"].follow == moves.roles["teacher"].follow


def test_memories_of_one_name_are_two():
    def with_memory(name):
        def count(ctx):
            return m.Out(loss(ctx), memory={"count": ctx.memory["count"] + 1})

        method = small(name, name)._replace(memory=lambda *_: {"count": jnp.zeros(())})
        phase = method.phases[0]._replace(terms=(m.Term(name, count),))
        return method._replace(phases=(phase,))

    joined = compose(with_memory("a"), with_memory("b"))
    assert set(joined.memory(1, (1,))) == {"count", "b_count"}
    ctx = dataclasses.replace(
        seen({"x0": jnp.ones((1, 1))}), memory={"count": 1, "b_count": 5}
    )
    outs = [term.loss(ctx).memory for term in joined.phases[0].terms]
    assert outs == [{"count": 2}, {"b_count": 6}]


def test_merged_gradients_are_summed_with_the_others():
    def merge(gradients, step):
        return jax.tree.map(lambda x, y: x * y, gradients["one"], gradients["two"])

    a = small()
    terms = (m.Term("one", loss), m.Term("two", loss))
    a = a._replace(phases=(a.phases[0]._replace(terms=terms, merge=merge),))
    b = small("b", "two")
    for pair, names in (
        ((a, b), {"one": 2.0, "two": 5.0, "b/two": 7.0}),
        ((b, a), {"two": 7.0, "one": 2.0, "a/two": 5.0}),
    ):
        phase = compose(*pair, weights={"a": 3.0, "b": 0.5}).phases[0]
        assert [term.name for term in phase.terms] == list(names)
        # The weight of a merged gradient is that of its result.
        assert sorted(term.weight for term in phase.terms) == [0.5, 1.0, 1.0]
        merged = phase.merge({n: {"w": jnp.asarray(v)} for n, v in names.items()}, 0)
        assert float(merged["w"]) == 3.0 * 2.0 * 5.0 + 7.0


def test_unequal_repeats_want_a_word():
    a = small()
    b = small("b", "two")
    b = b._replace(phases=(b.phases[0]._replace(repeat=3),))
    with pytest.raises(ValueError, match="trains the student 1 and 3 times"):
        compose(a, b)
    assert compose(a, b, repeats={"student": 2}).phases[0].repeat == 2
    assert compose(a, repeats={"student": 4}).phases[0].repeat == 4
    with pytest.raises(ValueError, match="phase in repeats 'critc'"):
        compose(a, b, repeats={"student": 2, "critc": 2})


def test_unknown_weight_names_the_methods():
    with pytest.raises(ValueError, match="method in weights 'c'.*Known: a"):
        compose(small(), weights={"c": 1.0})
