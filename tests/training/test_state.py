import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.core.method import Method, Phase, Role, Term, check
from distilljax.training import create_frozen, create_state, make_setup
from distilljax.training.config import TrainConfig
from distilljax.training.state import abstract
from tests import toy
from tests.training import small

TEACHER = small.NETWORK.init(jax.random.key(5))


def pointers(tree):
    return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}


def setup_of(method, networks=None, **config):
    networks = {"backbone": small.NETWORK} if networks is None else networks
    return make_setup(method, networks, TrainConfig.of(config), (2,))


def distilling(**roles) -> Method:
    terms = (Term("imitate", small.imitate),)
    return check(
        Method(
            "distilling",
            {"teacher": Role(), "student": Role(), **roles},
            (Phase("student", ("student",), terms),),
        )
    )


def test_copies_never_alias():
    setup = setup_of(small.critic_and_student(), student={"ema": 0.9})
    state = create_state(setup, {"teacher": TEACHER})
    frozen = create_frozen(setup, {"teacher": TEACHER})
    trees = [state.params["student"], state.params["fake"], state.ema["student"]]
    seen = pointers(TEACHER)
    for tree in trees:
        jax.tree.map(np.testing.assert_array_equal, tree, TEACHER)
        assert not pointers(tree) & seen
        seen |= pointers(tree)
    assert pointers(frozen["teacher"]) == pointers(TEACHER)
    assert set(frozen) == {"teacher"}


def test_abstract_state_is_the_state():
    setup = setup_of(small.critic_and_student(), student={"ema": 0.9})
    state = create_state(setup, {"teacher": TEACHER})
    shapes = abstract(setup, {"teacher": TEACHER})
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_second_time_is_the_networks_own_and_starts_as_the_teacher():
    networks = {"backbone": small.NETWORK, "student": toy.mlp((2,), second_time=True)}
    setup = setup_of(distilling(), networks)
    state = create_state(setup, {"teacher": TEACHER})
    student = state.params["student"]
    assert "second" in student
    assert "second" not in TEACHER
    x, t = jnp.ones((4, 2)), jnp.full((4,), 0.7)
    np.testing.assert_array_equal(
        networks["student"].apply(student, x, t, None, 0.2 * t),
        small.NETWORK.apply(TEACHER, x, t),
    )


def test_chain_of_inits():
    roles = {"other": Role(init="student"), "free": Role(init="random")}
    setup = setup_of(distilling(**roles))
    frozen = create_frozen(setup, {"teacher": TEACHER})
    jax.tree.map(np.testing.assert_array_equal, frozen["other"], TEACHER)
    assert not np.allclose(frozen["free"]["in"]["w"], TEACHER["in"]["w"])
    again = create_frozen(setup, {"teacher": TEACHER})
    jax.tree.map(np.testing.assert_array_equal, frozen["free"], again["free"])


def test_given_parameters_win_over_init():
    other = small.NETWORK.init(jax.random.key(6))
    state = create_state(setup_of(distilling()), {"teacher": TEACHER, "student": other})
    jax.tree.map(np.testing.assert_array_equal, state.params["student"], other)


def test_numpy_and_half_precision_sources_are_cast():
    half = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16)), TEACHER)
    setup = setup_of(distilling())
    state = create_state(setup, {"teacher": half})
    assert state.params["student"]["in"]["w"].dtype == jnp.float32
    assert (
        create_frozen(setup, {"teacher": half})["teacher"]["in"]["w"].dtype
        == "bfloat16"
    )


def test_errors_name_role_and_leaf():
    with pytest.raises(ValueError, match="'teacher'.*pass params"):
        create_state(setup_of(distilling()))
    with pytest.raises(ValueError, match="no role.*'techer'|'techer'.*no role"):
        create_state(setup_of(distilling()), {"techer": TEACHER})
    wide = toy.mlp((2,), hidden=48).init(jax.random.key(0))
    with pytest.raises(ValueError, match="'teacher'.*in/b.*32.*48"):
        create_state(setup_of(distilling()), {"teacher": wide})
    networks = {"backbone": small.NETWORK, "student": toy.mlp((2,), hidden=16)}
    with pytest.raises(ValueError, match="'student' starts from 'teacher'.*in/b"):
        create_state(setup_of(distilling(), networks), {"teacher": TEACHER})
    more = {**TEACHER, "extra": {"w": jnp.zeros((2,))}}
    with pytest.raises(ValueError, match="extra/w"):
        create_state(setup_of(small.regression("given")), {"student": more})
    circle = {"a": Role(init="b"), "b": Role(init="a")}
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        create_frozen(setup_of(distilling(**circle)), {"teacher": TEACHER})
