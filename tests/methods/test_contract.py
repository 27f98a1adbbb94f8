"""The contract of every registered method, one table."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import methods
from distilljax.core.method import Out, batches
from distilljax.methods import CATALOGUE
from distilljax.training.cycle import build_cycle
from distilljax.training.update import Update
from tests import toy
from tests.methods import cases

NAMES = sorted(CATALOGUE)


def test_every_method_has_a_case():
    assert sorted(cases.CASES) == NAMES


def values(setup, state, frozen, phase, data, order=None, params=None):
    """Values of every term of a phase on one batch, each in its own context."""
    if order is not None:
        setup = Permuted(setup, order)
    update = Update(setup, phase, state, frozen, {})
    trained = {r: state.params[r] for r in phase.trains} if params is None else params
    key = jax.random.fold_in(update.key, 0)
    ctx = update.context(trained, data, state.memory, key, jnp.zeros((), jnp.int32))
    out = {}
    for term in phase.terms:
        result = term.loss(ctx.of(term.name))
        out[term.name] = result.values if isinstance(result, Out) else result
    return out


class Permuted:
    """A setup whose every draw is permuted over the batch."""

    def __init__(self, setup, order):
        self._setup, self._order = setup, order

    def __getattr__(self, name):
        return getattr(self._setup, name)

    def constrain(self, x):
        return x[self._order] if x.ndim and x.shape[0] == 16 else x


ORDER = jnp.asarray(np.random.default_rng(0).permutation(16))


def one(data):
    return {name: value[0, 0] for name, value in data.items()}


def half(network):
    """The network in bfloat16, its parameters and results in float32."""

    def apply(params, x, t, cond=None, s=None, **options):
        params, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x))
        out = network.apply(params, x, t, cond, s, **options)
        return jax.tree.map(lambda a: a.astype(jnp.float32), out)

    return dataclasses.replace(network, apply=apply)


def moved(state):
    """A state whose roles have left their common start."""
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    new = [
        leaf + 0.1 * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return state._replace(params=jax.tree.unflatten(tree, new))


class Case:
    """A method with what one program says of all its phases, made once."""

    def __init__(self, name):
        self.name = name
        self.setup, self.state, self.frozen = cases.setup(name)
        backbone = toy.mlp(cases.SHAPE, second_time=True, num_classes=cases.CLASSES)
        nets = cases.networks(backbone=half(backbone))
        self.halves = cases.joined(nets, cases.method(name))
        self.phases = [p for p in self.setup.method.phases if p.terms]
        self.data = one(cases.batch(1))

    @functools.cached_property
    def found(self):
        """Per phase: values plain, permuted and in half precision, and gradients."""

        def everything(state, frozen, data, order):
            out = []
            for phase in self.phases:

                def means(trained, phase=phase):
                    found = values(
                        self.setup, state, frozen, phase, data, order, trained
                    )
                    return {k: jnp.mean(value) for k, value in found.items()}, found

                trained = {role: state.params[role] for role in phase.trains}
                out.append(jax.jacrev(means, has_aux=True)(trained))
            return out

        def halves(state, frozen, data):
            return [
                values(self.halves, state, frozen, phase, data) for phase in self.phases
            ]

        # Compiling takes the time here, so one program says three of the four.
        program = jax.jit(everything)
        same = jnp.arange(len(ORDER))
        shuffled = {key: value[ORDER] for key, value in self.data.items()}
        plain = program(self.state, self.frozen, self.data, same)
        other = program(self.state, self.frozen, shuffled, ORDER)
        away = program(moved(self.state), self.frozen, self.data, same)
        half = jax.jit(halves)(self.state, self.frozen, self.data)
        return [
            {
                "plain": plain[i][1],
                "permuted": other[i][1],
                "half": half[i],
                "grads": away[i][0],
            }
            for i in range(len(self.phases))
        ]


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return Case(request.param)


def test_samples_do_not_see_their_neighbours(case):
    """Permuting data and draws permutes the values, except of coupled terms."""
    if any(getattr(d, "slots", None) for p in case.phases for d in p.draws.values()):
        pytest.fail("use a case without slots here")
    if case.name in cases.PLACED:
        _neighbours_do_not_matter(case)
        return
    for phase, found in zip(case.phases, case.found, strict=True):
        for term in phase.terms:
            if not term.coupled:
                np.testing.assert_allclose(
                    found["plain"][term.name][ORDER],
                    found["permuted"][term.name],
                    rtol=2e-3,
                    atol=1e-5,
                )


def _neighbours_do_not_matter(case):
    """For terms in which a row's part follows from its place: others' data differ."""
    half = len(case.data["x0"]) // 2
    other = {k: v.at[half:].set(v[half:][::-1]) for k, v in case.data.items()}
    for phase in case.phases:
        found, changed = (
            values(case.setup, case.state, case.frozen, phase, data)
            for data in (case.data, other)
        )
        for term in (t for t in phase.terms if not t.coupled):
            a, b = found[term.name], changed[term.name]
            np.testing.assert_allclose(a[:half], b[:half], rtol=2e-3, atol=1e-5)
            assert jnp.abs(a[half:] - b[half:]).max() > 1e-3


def test_values_are_finite_with_the_batch_first_and_jit_equals_eager(case):
    for phase, found in zip(case.phases, case.found, strict=True):
        eager = values(case.setup, case.state, case.frozen, phase, case.data)
        for term, value in eager.items():
            assert value.shape[:1] == (16,), (case.name, term)
            assert value.dtype == jnp.float32
            assert bool(jnp.all(jnp.isfinite(value)))
            np.testing.assert_allclose(
                value, found["plain"][term], rtol=2e-3, atol=1e-4
            )


def test_one_program_moves_declared_roles_only_and_the_teacher_lives(case):
    setup, state, frozen = case.setup, case.state, case.frozen
    before = jax.tree.map(np.asarray, frozen)
    start = jax.tree.map(np.asarray, state.params)
    cycle = build_cycle(setup, setup.method.phases)
    state = jax.tree.map(jnp.copy, state)
    for seed in range(2):
        state, metrics = cycle(
            state, frozen, cases.batch(batches(setup.method.phases), seed=seed)
        )
    assert cycle._cache_size() == 1
    assert int(state.step) == 2
    assert all(bool(jnp.all(jnp.isfinite(v))) for v in metrics.values())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
    jax.tree.map(
        np.testing.assert_array_equal, before, jax.tree.map(np.asarray, frozen)
    )
    for role in setup.method.trained:
        moved = jax.tree.map(
            lambda a, b: float(np.abs(a - np.asarray(b)).max()),
            start[role],
            state.params[role],
        )
        assert max(jax.tree.leaves(moved)) > 0, role
        assert float(metrics[f"grad_norm/{role}"]) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_defaults_trace(name):
    """The small settings of the other tests must not hide a default that fails."""
    setup, state, frozen = cases.setup(name, built=methods.build(name))
    for phases in (setup.method.phases, *(s.phases for s in setup.method.stages)):
        data = jax.eval_shape(lambda n=batches(phases): cases.batch(n))
        after, metrics = jax.eval_shape(build_cycle(setup, phases), state, frozen, data)
        assert "student/loss" in metrics
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_every_term_moves_a_trained_role(case):
    for found in case.found:
        for term, grads in found["grads"].items():
            sizes = [float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)]
            assert np.all(np.isfinite(sizes)), term
            assert max(sizes) > 1e-6, term


def test_half_precision_stays_close(case):
    for found in case.found:
        for term, value in found["plain"].items():
            mean = float(jnp.mean(jnp.abs(value)))
            error = float(jnp.mean(jnp.abs(value - found["half"][term])))
            assert error < 0.15 * mean + 1e-3, term


def test_students_start_as_their_teacher(case):
    setup, state, frozen = case.setup, case.state, case.frozen
    if "teacher" not in setup.method.roles:
        assert not CATALOGUE[case.name].teacher
        return
    from distilljax.core.binding import Bound

    network = setup.networks["student"]
    x = jax.random.normal(jax.random.key(3), (8, 2))
    t, s = jnp.linspace(0.1, 1.0, 8), jnp.linspace(0.0, 0.5, 8)
    cond = jnp.arange(8) % cases.CLASSES
    student = Bound("student", network, state.params["student"])
    # A teacher that follows its student lives in the state.
    params = {**state.params, **frozen}["teacher"]
    teacher = Bound("teacher", network, params)
    np.testing.assert_array_equal(
        student.apply(x, t, cond, s), teacher.apply(x, t, cond)
    )
