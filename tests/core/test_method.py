"""Records of methods and their checks."""

import pytest

from distilljax import method as m
from distilljax.diffusion.paths import trigflow
from distilljax.methods import CATALOGUE, build, dmd2, scm
from tests.records import loss, small


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
    with pytest.raises(ValueError, match=r"unknown method 'dmd3'.*'dmd2'"):
        build("dmd3")
    with pytest.raises(
        ValueError, match=r"option of method 'scm' 'guidence'.*guidance"
    ):
        build("scm", guidence=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": float("inf")}, "'guidance' .* finite"),
        ({"guidance_interval": (0.0, float("nan"))}, r"interval'.*\[1\] must be a fin"),
    ],
)
def test_build_refuses_options_that_are_not_finite(options, message):
    with pytest.raises(ValueError, match=message):
        build("scm", **options)


def test_build_says_which_options_do_not_fit():
    with pytest.raises(
        ValueError, match="option 'steps' of method 'dmd2' must be a list"
    ):
        build("dmd2", steps=3)


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
