import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distilljax.core.context import fold_name
from distilljax.core.method import Method, Out, Phase, Role, Term, check
from distilljax.training import build_cycle, create_frozen, create_state, make_setup
from distilljax.training.config import TrainConfig
from distilljax.training.roles import updates_of
from tests.training import small
from tests.training.test_state import TEACHER, pointers

NETWORKS = {"backbone": small.NETWORK}


def run(method, cycles=1, *, batch=None, networks=NETWORKS, params=None, **config):
    """State, frozen parameters and metrics by cycle."""
    config = TrainConfig.of({"batch_size": 32, "cycles": 10, **config})
    setup = make_setup(method, networks, config, (2,))
    given = {"teacher": TEACHER} if params is None else params
    state, frozen = create_state(setup, given), create_frozen(setup, given)
    cycle = build_cycle(setup, method.phases)
    n = sum(p.repeat for p in method.phases if p.fresh)
    stacked = setup.stacked
    stream = small.Stream(n, stacked, 32 // stacked)
    logs = []
    for _ in range(cycles):
        state, metrics = cycle(state, frozen, next(stream) if batch is None else batch)
        logs.append(jax.device_get(metrics))
    return state, frozen, logs


def assert_close(a, b, tolerance=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance),
        a,
        b,
    )


def differs(a, b) -> bool:
    return any(
        not np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def imitating(*terms, **phase) -> Method:
    terms = terms or (Term("imitate", small.imitate),)
    return check(
        Method(
            "imitating",
            {"teacher": Role(), "student": Role(init="random")},
            (Phase("student", ("student",), terms, **phase),),
        )
    )


def test_equals_a_hand_written_update():
    method = small.regression()
    state, _, logs = run(method, 2, student={"lr": 1e-2, "clip": 0.5, "ema": 0.5})
    config = TrainConfig.of({"batch_size": 32, "cycles": 10, "student": {"lr": 1e-2}})
    first = create_state(make_setup(method, NETWORKS, config, (2,)))
    params, key = first.params["student"], first.key
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))
    opt, stream, ema = tx.init(params), small.Stream(), params

    @jax.jit
    def update(params, opt, ema, step, x0):
        phase = jax.random.fold_in(
            fold_name(jax.random.fold_in(key, step), "student"), 0
        )
        term = fold_name(phase, "fit")
        eps = jax.random.normal(fold_name(term, "eps"), x0.shape)
        t = jax.random.uniform(fold_name(term, "t"), x0.shape[:1])

        def loss(params):
            x_t = (1 - t[:, None]) * x0 + t[:, None] * eps
            v = small.NETWORK.apply(params, x_t, t)
            return jnp.mean((v - (eps - x0)) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(0.5, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, params)
        return params, opt, ema, value, optax.tree.norm(grads)

    for step in range(2):
        x0 = next(stream)["x0"][0, 0]
        params, opt, ema, value, norm = update(params, opt, ema, step, x0)
        np.testing.assert_allclose(logs[step]["student/fit"], value, rtol=1e-6)
        np.testing.assert_allclose(logs[step]["grad_norm/student"], norm, rtol=1e-5)
    assert_close(state.params["student"], params, 1e-5)
    assert_close(state.ema["student"], ema, 1e-5)
    assert int(state.step) == 2


def test_metrics():
    _, _, logs = run(small.critic_and_student())
    assert set(logs[0]) == {
        "fake/fit",
        "fake/loss",
        "grad_norm/fake",
        "grad_norm/student",
        "skipped/fake",
        "skipped/student",
        "skipped_in_a_row",
        "student/chase",
        "student/chase/gap",
        "student/loss",
    }
    half = 0.5 * logs[0]["student/chase"]
    np.testing.assert_allclose(logs[0]["student/loss"], half, rtol=1e-6)


def test_repeats_are_updates_on_batches_in_order():
    batch = next(small.Stream(3))
    once, _, logs = run(imitating(repeat=3), batch=batch)
    method, state = imitating(), None
    setup = make_setup(
        method, NETWORKS, TrainConfig.of({"batch_size": 32, "cycles": 10}), (2,)
    )
    state = create_state(setup, {"teacher": TEACHER})
    frozen = create_frozen(setup, {"teacher": TEACHER})
    cycle, losses = build_cycle(setup, method.phases), []
    for i in range(3):
        one = {"x0": batch["x0"][i : i + 1]}
        state, metrics = cycle(state, frozen, one)
        losses.append(metrics["student/loss"])
    assert_close(once.params, state.params)
    np.testing.assert_allclose(logs[0]["student/loss"], np.mean(losses), rtol=1e-6)


def test_not_fresh_takes_the_batch_before():
    def seen(name):
        def loss(ctx):
            scale = 1.0 + 0.0 * ctx.nets[name].params["in"]["b"][0]
            mean = jnp.mean(ctx.data["x0"])
            return Out(mean * scale[None], {"mean": mean})

        return (Term("seen", loss),)

    phases = (
        Phase("a", ("a",), seen("a"), repeat=2),
        Phase("b", ("b",), seen("b"), fresh=False),
        Phase("student", ("student",), seen("student")),
    )
    roles = {name: Role(init="random") for name in ("student", "a", "b")}
    batch = {
        "x0": np.ones((3, 1, 32, 2), np.float32) * np.arange(3)[:, None, None, None]
    }
    _, _, logs = run(check(Method("m", roles, phases)), batch=batch, params={})
    means = [float(logs[0][f"{name}/seen/mean"]) for name in ("a", "b", "student")]
    assert means == [0.5, 1.0, 2.0]


def collecting(repeat: int, rows: int) -> Method:
    def gather(ctx):
        return {"pool": jnp.arange(rows * ctx.batch_size)[:, None] * jnp.ones((1, 2))}

    def loss(ctx):
        pool = ctx.data["pool"]
        seen = ctx.memory["seen"].at[ctx.repeat].set(jnp.mean(pool))
        v = ctx.nets.student.velocity()(pool * 1e-3, 0.5)
        return Out(jnp.mean(v**2, axis=-1), memory={"seen": seen})

    phases = (
        Phase("gather", (), collect=gather),
        Phase(
            "student", ("student",), (Term("fit", loss),), repeat=repeat, fresh=False
        ),
    )
    return check(
        Method(
            "collecting",
            {"student": Role(init="random")},
            phases,
            memory=lambda batch_size, shape: {"seen": jnp.zeros((repeat,))},
        )
    )


@pytest.mark.parametrize("fuse", ["cycle", "phase"])
def test_collected_results_are_minibatched_over_repeats(fuse):
    state, _, _ = run(collecting(4, 4), params={}, fuse=fuse)
    np.testing.assert_allclose(state.memory["seen"], [15.5, 47.5, 79.5, 111.5])
    state, _, _ = run(collecting(2, 1), params={}, fuse=fuse)
    np.testing.assert_allclose(state.memory["seen"], [15.5, 15.5])


def test_collect_with_repeats_and_minibatches_is_a_pool():
    def gather(ctx):
        return {"pool": ctx.data["x0"]}

    def loss(ctx):
        seen = ctx.memory["seen"].at[ctx.repeat].set(jnp.mean(ctx.data["pool"]))
        v = ctx.nets.student.velocity()(ctx.data["pool"], 0.5)
        return Out(v, memory={"seen": seen})

    phases = (
        Phase("gather", (), collect=gather, repeat=3),
        Phase("student", ("student",), (Term("fit", loss),), repeat=3, fresh=False),
    )
    method = Method(
        "pool",
        {"student": Role(init="random")},
        phases,
        memory=lambda batch_size, shape: {"seen": jnp.zeros((3,))},
    )
    batch = next(small.Stream(3))
    state, _, _ = run(check(method), batch=batch, params={})
    means = batch["x0"].mean((1, 2, 3))
    np.testing.assert_allclose(state.memory["seen"], means, rtol=1e-5)


def writer(name, entry="count"):
    def loss(ctx):
        count = ctx.memory["count"] + 1
        return Out(small.imitate(ctx), memory={entry: count})

    return Term(name, loss)


def test_memory_is_carried_and_has_one_writer():
    method = imitating(writer("a"), repeat=3)._replace(
        memory=lambda batch_size, shape: {"count": jnp.zeros((), jnp.int32)}
    )
    state, _, _ = run(method, 2)
    assert int(state.memory["count"]) == 6
    assert state.memory["count"].dtype == jnp.int32
    twice = imitating(writer("a"), writer("b"))._replace(memory=method.memory)
    with pytest.raises(ValueError, match="student/b.*'count'.*student/a.*one writer"):
        run(twice)
    wrong = imitating(writer("a", "cuont"))._replace(memory=method.memory)
    with pytest.raises(ValueError, match="'cuont'.*count"):
        run(wrong)


def test_follow():
    method = small.following(decay=0.75, every=2)
    first = run(method, 1, params={})[0]
    start = create_state(
        make_setup(
            method, NETWORKS, TrainConfig.of({"batch_size": 32, "cycles": 10}), (2,)
        )
    )
    assert_close(first.params["target"], start.params["target"], 0)
    second = run(method, 2, params={})[0]
    expected = jax.tree.map(
        lambda a, b: 0.75 * a + 0.25 * b,
        start.params["target"],
        second.params["student"],
    )
    assert_close(second.params["target"], expected)


def test_follow_copies_and_scheduled_decay():
    state = run(small.following(), 1, params={})[0]
    assert_close(state.params["target"], state.params["student"], 0)
    assert not pointers(state.params["target"]) & pointers(state.params["student"])
    method = small.following(decay=lambda step: jnp.where(step < 1, 1.0, 0.0))
    one, two = run(method, 1, params={})[0], run(method, 2, params={})[0]
    assert differs(one.params["target"], one.params["student"])
    assert_close(two.params["target"], two.params["student"], 0)


def test_follow_after_a_phase_sees_that_phase():
    """The follower of the critic is up to date when the student trains."""
    method = small.critic_and_student(repeat=2)

    def difference(ctx):
        a, b = ctx.nets.shadow.params["in"]["w"], ctx.nets.fake.params["in"]["w"]
        gap = jnp.max(jnp.abs(a - b))
        return Out(small.imitate(ctx), {"gap": gap})

    from distilljax.core.method import Follow

    roles = {**method.roles, "shadow": Role(init="fake")}
    student = method.phases[1]._replace(terms=(Term("look", difference),), draws={})
    gaps = []
    for after in ("fake", None):
        roles["shadow"] = Role(init="fake", follow=Follow("fake", after=after))
        one = method._replace(roles=dict(roles), phases=(method.phases[0], student))
        gaps.append(float(run(check(one))[2][0]["student/look/gap"]))
    assert gaps[0] == 0.0
    assert gaps[1] > 0.0


def other(ctx):
    return jnp.mean(small.jump(ctx, "student", ctx.data["x0"]) ** 2, axis=-1)


@dataclasses.dataclass(frozen=True)
class Added:
    base: str
    other: str

    def __call__(self, params, step):
        return jax.tree.map(jnp.add, params[self.base], params[self.other])


def test_derived_role_gets_its_gradient_through_the_adapter():
    method = imitating(Term("other", other))
    phase = method.phases[0]._replace(name="adapter", trains=("adapter",))
    roles = {
        "teacher": Role(),
        "adapter": Role(network="adapter", init="random"),
        "student": Role(derive=Added("teacher", "adapter")),
    }
    zero = dataclasses.replace(
        small.NETWORK,
        init=lambda key: jax.tree.map(jnp.zeros_like, small.NETWORK.init(key)),
    )
    networks = {**NETWORKS, "adapter": zero}
    method = check(Method("lora", roles, (phase,)))
    batch = next(small.Stream())
    config = {"adapter": {"lr": 1e-2}}
    state, frozen, logs = run(method, 3, networks=networks, batch=batch, **config)
    assert set(state.params) == {"adapter"}
    assert set(frozen) == {"teacher"}
    assert logs[2]["adapter/loss"] < logs[0]["adapter/loss"]
    assert_close(frozen["teacher"], TEACHER, 0)


def test_merge_replaces_the_sum():
    terms = (Term("imitate", small.imitate, 2.0), Term("other", other, 0.5))

    def total(grads, step):
        assert set(grads) == {"imitate", "other"}
        return jax.tree.map(jnp.add, grads["imitate"], grads["other"])

    summed = run(imitating(*terms))[0]
    merged = run(imitating(*terms, merge=total))[0]
    assert_close(merged.params, summed.params)
    only = run(imitating(*terms, merge=lambda grads, step: grads["other"]))[0]
    alone = run(imitating(terms[1]))[0]
    assert_close(only.params, alone.params)


@pytest.mark.parametrize("merge", [None, lambda grads, step: grads["imitate"]])
def test_accumulation_equals_the_big_batch(merge):
    terms = (Term("imitate", small.imitate), Term("masked", other, 0.3, mask="mask"))
    rng = np.random.default_rng(0)
    batch = {
        "x0": rng.normal(size=(1, 4, 8, 2)).astype(np.float32),
        "mask": (rng.uniform(size=(1, 4, 8)) < 0.3).astype(np.float32),
    }
    big = jax.tree.map(lambda x: x.reshape(1, 1, 32, *x.shape[3:]), batch)
    method = imitating(*terms, merge=merge)
    config = {"optimizer": "sgd", "lr": 0.1, "betas": (0.0, 0.9)}
    one = run(method, batch=big, student=config)
    four = run(method, batch=batch, student={**config, "accumulate": 4})
    assert_close(four[0].params, one[0].params)
    assert_close(four[2][0], one[2][0], 1e-5)


def test_roles_accumulate_differently():
    method = small.critic_and_student(repeat=2)
    both = {"fake": {"accumulate": 4}, "student": {"accumulate": 2}}
    state, _, logs = run(method, **both)
    assert np.isfinite(logs[0]["fake/loss"])
    assert np.isfinite(logs[0]["student/loss"])
    assert int(state.counters["fake"]["skipped"]) == 0


def test_phase_programs_equal_the_cycle_program():
    method = small.critic_and_student()
    whole, _, logs = run(method, 3, student={"ema": 0.9})
    parts, _, other_logs = run(method, 3, student={"ema": 0.9}, fuse="phase")
    assert_close(parts.params, whole.params)
    assert_close(parts.ema, whole.ema)
    assert_close(other_logs[-1], logs[-1], 1e-5)


def test_guard_skips_only_the_role_that_is_not_finite():
    def loss(ctx):
        a = ctx.nets.student.params["in"]["w"]
        b = ctx.nets.other.params["in"]["w"]
        return jnp.sum(a**2)[None] * ctx.data["scale"] + jnp.sum(b**2)

    roles = {"student": Role(init="random"), "other": Role(init="random")}
    phase = Phase("student", ("student", "other"), (Term("sum", loss),))
    method = check(Method("guarded", roles, (phase,), batch=frozenset({"scale"})))
    config = TrainConfig.of({"batch_size": 4, "cycles": 10, "default": {"clip": 1.0}})
    setup = make_setup(method, NETWORKS, config, (2,))
    state, cycle = create_state(setup), build_cycle(setup, method.phases)
    history, before = [], None
    for value in (1.0, np.nan, np.inf, 1.0):
        before = jax.device_get((state.params, state.opt))
        state, metrics = cycle(
            state, {}, {"scale": np.full((1, 1, 4), value, np.float32)}
        )
        after = jax.device_get((state.params, state.opt))
        for tree in (0, 1):
            moved = differs(before[tree]["student"], after[tree]["student"])
            assert moved == np.isfinite(value)
            assert differs(before[tree]["other"], after[tree]["other"])
        history.append(
            [int(metrics["skipped/student"]), int(metrics["skipped_in_a_row"])]
        )
    assert history == [[0, 0], [1, 1], [2, 2], [2, 0]]
    assert int(state.counters["other"]["skipped"]) == 0


def test_clip_limits_the_gradient():
    config = {"optimizer": "sgd", "lr": 1.0, "betas": (0.0, 0.9), "clip": 1e-3}
    before, _, _ = run(imitating(), 0, student=config)
    after, _, logs = run(imitating(), student=config)
    assert logs[0]["grad_norm/student"] > 1e-2
    moved = jax.tree.map(jnp.subtract, after.params, before.params)
    np.testing.assert_allclose(optax.tree.norm(moved), 1e-3, rtol=1e-4)


def test_state_is_donated_and_frozen_is_not():
    method = imitating()
    config = TrainConfig.of({"batch_size": 32, "cycles": 10})
    setup = make_setup(method, NETWORKS, config, (2,))
    state = create_state(setup, {"teacher": TEACHER})
    frozen = create_frozen(setup, {"teacher": TEACHER})
    new, _ = build_cycle(setup, method.phases)(state, frozen, next(small.Stream()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((frozen, TEACHER)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


def test_draws_are_shared_and_may_not_hide_fields():
    def look(ctx):
        return Out(small.imitate(ctx), {"mean": jnp.mean(ctx.data["x"])})

    terms = (Term("a", look), Term("b", look))
    _, _, logs = run(imitating(*terms, draws={"x": small.Generated()}))
    assert logs[0]["student/a/mean"] == logs[0]["student/b/mean"]
    with pytest.raises(ValueError, match="x0"):
        run(imitating(draws={"x0": small.Generated()}))


def test_weight_is_a_schedule_over_cycles():
    term = Term("imitate", small.imitate, lambda step: 1.0 + step)
    _, _, logs = run(imitating(term), 2)
    np.testing.assert_allclose(logs[1]["student/loss"], 2 * logs[1]["student/imitate"])


def test_updates_of_a_role():
    from distilljax.core.method import Stage

    method = small.critic_and_student(repeat=3)
    stage = Stage(4, (method.phases[0]._replace(repeat=5),))
    method = check(method._replace(stages=(stage,)))
    assert updates_of(method, "fake", 10) == 4 * 5 + 6 * 3
    assert updates_of(method, "student", 10) == 6
    assert updates_of(method, "fake", 3) == 15
