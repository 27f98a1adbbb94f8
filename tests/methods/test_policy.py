"""Policies are exact where the theory says so, and pi-Flow rests there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks, oracles, paths
from distilljax.diffusion.times import ShiftedGrid
from distilljax.methods import pi_flow
from distilljax.methods.policies import (
    GridPolicy,
    MixturePolicy,
    PolicyView,
    PolynomialPolicy,
    mean_velocity,
    policy_of,
    rollout,
    velocity,
)
from distilljax.sampling.generation import student_sampler
from tests import exact
from tests.methods import cases
from tests.methods.played import play, vanishes

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = paths.linear()
PATHS = {name: exact.PATHS[name] for name in ("linear", "trigflow_half", "vp", "edm")}
DATA = oracles.Gaussian(jnp.array([0.7, -0.3]), 0.4)
B = 6


def posterior(path, x, t):
    """The policy of one component that is the posterior of `DATA`."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    variance = (DATA.std * sigma) ** 2 / ((alpha * DATA.std) ** 2 + sigma**2)
    means = DATA.denoised(path)(x, t)[:, None]
    return MixturePolicy(path, x, t, means, variance, jnp.zeros((B, 1, 1)))


def source(path, share=0.8):
    t = path.time_of_angle(jnp.linspace(0.6, 1.0, B) * share * jnp.pi / 2)
    return path.scale(t)[:, None] * exact.normal(0, B, 2), t


@pytest.mark.parametrize("name", sorted(PATHS))
def test_the_posterior_of_a_gaussian_is_its_field_everywhere(name):
    path = PATHS[name]
    x_src, t_src = source(path)
    policy = posterior(path, x_src, t_src)
    for share in (0.1, 0.5, 0.9, 1.0):
        t = path.time_of_angle(share * path.angle(t_src))
        x = path.scale(t)[:, None] * exact.normal(1, B, 2)
        exact.allclose(policy.denoised(x, t), DATA.denoised(path)(x, t), 1e-9)
    exact.allclose(velocity(policy, x, t), DATA.velocity(path)(x, t), 1e-9)
    # At the data the state is its own mean.
    zero = jnp.zeros(B)
    exact.allclose(policy.denoised(x, zero), x, 1e-9)


def test_the_prior_of_a_mixture_is_its_field_everywhere():
    ring = oracles.ring(modes=5)
    x_src, t_src = exact.normal(0, B, 2), jnp.ones(B)
    means = jnp.broadcast_to(ring.means, (B, 5, 2))
    policy = MixturePolicy(
        LINEAR, x_src, t_src, means, jnp.full(B, 0.15**2), jnp.zeros((B, 5, 1))
    )
    t = jnp.linspace(0.1, 0.9, B)
    x = exact.normal(1, B, 2)
    exact.allclose(policy.denoised(x, t), ring.denoised(LINEAR)(x, t), 1e-9)


def test_weights_may_differ_by_place():
    """Two places with mixtures of their own are two policies."""
    x_src, t_src = exact.normal(0, B, 3, 2), jnp.full(B, 0.9)
    means, logits = exact.normal(1, B, 4, 3, 2), exact.normal(2, B, 4, 3, 1)
    variance, t, x = jnp.full(B, 0.3), jnp.full(B, 0.4), exact.normal(3, B, 3, 2)
    whole = MixturePolicy(LINEAR, x_src, t_src, means, variance, logits)
    for i in range(3):
        part = MixturePolicy(
            LINEAR, x_src[:, i], t_src, means[:, :, i], variance, logits[:, :, i]
        )
        exact.allclose(whole.denoised(x, t)[:, i], part.denoised(x[:, i], t), 1e-10)


def test_at_its_source_a_policy_is_the_mean_of_its_components():
    x, t = source(LINEAR)
    means, logits = exact.normal(1, B, 3, 2), exact.normal(2, B, 3, 1)
    policy = MixturePolicy(LINEAR, x, t, means, jnp.full(B, 0.2), logits)
    wanted = jnp.sum(jax.nn.softmax(logits, 1) * means, 1)
    exact.allclose(policy.denoised(x, t), wanted)


def test_a_rollout_of_the_exact_policy_follows_the_flow():
    x, t = source(LINEAR)
    policy, end = posterior(LINEAR, x, t), jnp.zeros(B)
    wanted = DATA.flow_map(LINEAR)(x, t, end)
    errors = [
        float(jnp.abs(rollout(policy, x, t, end, n) - wanted).max()) for n in (64, 128)
    ]
    assert errors[1] < 1e-2
    assert 1.7 < errors[0] / errors[1] < 2.3


def exact_policy(path=LINEAR):
    """A network whose policy is the posterior of `DATA`."""
    net = oracles.network(DATA, path)
    sd = path.sigma_d

    def emit(params, x, t, cond=None):
        velocity = net.apply(params, x, t)[:, None]
        alpha, sigma = path.alpha(t), path.sigma(t)
        spread = DATA.std * sigma / jnp.hypot(alpha * DATA.std, sigma)
        det = alpha * path.sigma_dot(t) - sigma * path.alpha_dot(t)
        log_std = jnp.log(spread * det / sigma / sd)
        return velocity, log_std, jnp.zeros((x.shape[0], 1, 1))

    return dataclasses.replace(net, functions={"policy": emit})


@pytest.mark.parametrize("steps", [1, 3])
def test_pi_flow_rests_on_the_exact_policy(steps):
    method = pi_flow(steps=steps, states=3)
    teacher = oracles.network(DATA, LINEAR)
    found = play(method, policy=exact_policy(), teacher=teacher)
    assert float(found.values()["imitate"].max()) < 1e-12
    other = oracles.network(oracles.Gaussian(0.0, 1.0), LINEAR)
    off = play(method, policy=exact_policy(), teacher=other)
    assert float(off.values()["imitate"].max()) > 1e-3


@pytest.mark.parametrize(
    "options", [{"teacher_ratio": 0.5}, {"window": 0.1, "shift": 3.2}]
)
def test_averages_rest_where_the_paths_are_straight(options):
    """The mean of a policy's velocity stands against the teacher's local one."""
    point = jnp.array([0.7, -0.3])

    def straight(params, x, t, cond=None, s=None, **more):
        return (x - point) / t[:, None]

    teacher = dataclasses.replace(oracles.network(DATA, LINEAR), apply=straight)

    def emit(params, x, t, cond=None):
        return straight(params, x, t)[:, None], None, None

    net = dataclasses.replace(teacher, functions={"policy": emit})
    method = pi_flow(policy="grid", states=2, substeps=4, **options)
    found = play(method, policy=net, teacher=teacher)
    assert float(found.values()["imitate"].max()) < 1e-20
    curved = play(method, policy=exact_grid(3, 1), teacher=exact_policy())
    assert float(curved.values()["imitate"].max()) > 1e-4


def test_the_mean_velocity_is_the_displacement_of_the_flow():
    x, t = source(LINEAR)
    policy, end = posterior(LINEAR, x, t), 0.3 * t
    wanted = (DATA.flow_map(LINEAR)(x, t, end) - x) / (end - t)[:, None]
    errors = [
        float(jnp.abs(mean_velocity(policy, x, t, end, n, 3.2) - wanted).max())
        for n in (32, 64)
    ]
    assert errors[1] < 1e-2
    assert 1.7 < errors[0] / errors[1] < 2.3
    exact.allclose(mean_velocity(policy, x, t, t, 3), velocity(policy, x, t), 1e-12)
    # On the linear path it is the rollout's own displacement, to the last digit.
    moved = rollout(policy, x, t, end, 5, 3.2)
    exact.allclose(
        mean_velocity(policy, x, t, end, 5, 3.2), (moved - x) / (end - t)[:, None], 1e-9
    )


def test_a_polynomial_policy_reproduces_a_quadratic_path():
    """``dx/dt = (x - D) / t`` with ``D`` quadratic in ``t`` has a closed form."""
    t_src, t = jnp.full(B, 0.9), jnp.full(B, 0.2)
    means, x = exact.normal(0, B, 3, 2), exact.normal(1, B, 2)
    policy = PolynomialPolicy(LINEAR, t_src, means)
    c0, c1, c2 = (means[:, i] for i in range(3))
    # D = a0 + a1 t + a2 t^2.
    a0, a1, a2 = c0 + 0.9 * c1 + 0.81 * c2, -c1 - 1.8 * c2, c2
    at = jnp.full(B, 0.5)
    exact.allclose(policy.denoised(x, at), a0 + 0.5 * a1 + 0.25 * a2, 1e-9)
    integral = a0 * (1 / 0.2 - 1 / 0.9) + a1 * jnp.log(0.9 / 0.2) + a2 * (0.9 - 0.2)
    wanted = 0.2 * (x / 0.9 + integral)
    errors = [
        float(jnp.abs(rollout(policy, x, t_src, t, n) - wanted).max())
        for n in (128, 256)
    ]
    assert errors[1] < 0.02
    assert 1.7 < errors[0] / errors[1] < 2.3
    vanishes(
        jax.grad(
            lambda m: jnp.sum(
                policy._replace(means=m).fixed(jnp.ones((B, 3), bool)).denoised(x, at)
            )
        )(means)
    )


def test_a_shifted_clock_sets_the_steps_and_the_places_of_estimates():
    x, t = exact.normal(1, B, 2), jnp.ones(B)
    means = exact.normal(0, B, 3, 2)
    policy = GridPolicy(LINEAR, t, jnp.zeros(B), means, 3.2)
    grid = jnp.asarray(ShiftedGrid(3.2)(4, LINEAR))
    # The middle estimate stands at the middle of the unshifted clock.
    exact.allclose(policy.denoised(x, grid[2]), means[:, 1], 1e-9)
    moved = x
    for now, after in zip(grid[:-1], grid[1:], strict=True):
        moved = LINEAR.jump(policy.denoised(moved, now), moved, now, after)
    exact.allclose(rollout(policy, x, t, jnp.zeros(B), 4, 3.2), moved, 1e-9)


def test_data_free_training_is_the_weighted_sum_over_the_students_own_segments():
    method = pi_flow(
        steps=2, grid=ShiftedGrid(1.0, 0.5), states=1, substeps=4, data_free=True
    )
    assert method.batch == frozenset()
    teacher = oracles.network(DATA, LINEAR)
    rests = play(method, policy=exact_policy(), teacher=teacher)
    assert float(rests.values()["imitate"].max()) < 1e-12
    found = play(method)
    ctx, cond = found.context().of("imitate"), found.data["cond"]
    nets = found.context().nets
    ways = ctx.uniform("student_way", (16, 2, 1))
    drop = ctx.uniform("drop", (16, 2, 4)) < 0.05
    x, wanted = ctx.normal("start"), 0.0
    for k, (start, end) in enumerate(((1.0, 1.0 / 3.0), (1.0 / 3.0, 0.0))):
        policy = policy_of(nets.student, cond, x, start, end)
        moving = policy.fixed(drop[:, k])
        at = start - ways[:, k, 0] * (start - end)
        x_a = rollout(moving, x, jnp.full(16, start), at, 4)
        gap = velocity(policy, x_a, at) - nets.teacher.apply(x_a, at, cond)
        wanted += (start - end) * 0.5 * jnp.mean(gap**2, -1)
        x = rollout(moving, x_a, at, jnp.full(16, end), 4)
        if k == 0:
            # The last state of a segment is moved on by no teacher.
            assert bool(jnp.all(at > 1e-3))
    exact.allclose(found.values()["imitate"], wanted, 1e-4)


def test_a_temperature_cools_every_step_but_the_last():
    x, t = source(LINEAR)
    means, logits = exact.normal(1, B, 3, 2), exact.normal(2, B, 3, 1)
    policy = MixturePolicy(LINEAR, x, t, means, jnp.full(B, 0.2), logits)
    cold = policy.cooled(0.25)
    exact.allclose(cold.logits, 4.0 * logits)
    exact.allclose(cold.variance, 0.05 * jnp.ones(B))
    played = play(pi_flow())
    student, cond = played.context().nets.student, played.data["cond"]
    x = played.context().of("imitate").normal("eps")
    warm, cool = PolicyView(2), PolicyView(2, temperature=0.25)
    for end, equal in ((0.0, True), (0.5, False)):
        a, b = (view(student, cond, LINEAR)(x, 1.0, end) for view in (warm, cool))
        assert bool(jnp.allclose(a, b)) == equal
    assert pi_flow(temperature=0.3).sampling.view == PolicyView(temperature=0.3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"policy": "grid", "temperature": 0.3}, "belong to the mixture policy"),
        ({"policy": "polynomial", "dropout": 0.1}, "belong to the mixture policy"),
        ({"window": 2.0}, "window must be a share"),
    ],
)
def test_options_that_have_no_part_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        pi_flow(**options)


def test_an_exact_policy_samples_in_one_evaluation():
    net = exact_policy(paths.trigflow(0.5))
    played = play(pi_flow(), policy=net, teacher=oracles.network(DATA, net.path))
    student = played.context().nets.student
    x = 0.5 * exact.normal(0, B, 2)
    t, zero = jnp.full(B, jnp.pi / 2), jnp.zeros(B)
    made = PolicyView(512)(student, None, net.path)(x, t, zero)
    wanted = DATA.flow_map(net.path)(x, t, zero)
    np.testing.assert_allclose(made, wanted, atol=2e-3)
    run = student_sampler(pi_flow(sampling_substeps=512), net, 1)
    exact.allclose(run({}, 2.0 * x, None, jax.random.key(0)), made, 1e-6)


def test_dropped_components_are_gone_but_never_all():
    x, t = source(LINEAR)
    means, logits = exact.normal(1, B, 3, 2), exact.normal(2, B, 3, 1)
    policy = MixturePolicy(LINEAR, x, t, means, jnp.full(B, 0.2), logits)
    some = jnp.zeros((B, 3), bool).at[:, 0].set(True)
    left = policy._replace(means=means[:, 1:], logits=logits[:, 1:])
    y, s = exact.normal(3, B, 2), 0.5 * t
    exact.allclose(policy.fixed(some).denoised(y, s), left.denoised(y, s))
    exact.allclose(
        policy.fixed(jnp.ones((B, 3), bool)).denoised(y, s), policy.denoised(y, s)
    )
    grads = jax.grad(
        lambda m: jnp.sum(policy._replace(means=m).fixed(some).denoised(y, s))
    )(means)
    vanishes(grads)


def test_pi_flow_asks_the_teacher_on_the_path_of_the_policy():
    """One state: drawn time, rolled-out state, mismatch of two velocities."""
    method = pi_flow(states=1, dropout=0.0, teacher_ratio=0.0, substeps=4)
    found = play(method)
    ctx = found.context().of("imitate")
    cond, one = found.data["cond"], jnp.ones(16)
    noise = ctx.normal("eps")
    policy = policy_of(found.context().nets.student, cond, noise, one, 0.0)
    at = 1.0 - ctx.uniform("student_way", (16, 1))[:, 0]
    x = noise
    for k in range(4):
        t, s = (1.0 - (1.0 - at) * i / 4 for i in (k, k + 1))
        x = x + (s - t)[:, None] * velocity(policy, x, t)
    v = found.context().nets.teacher.apply(x, at, cond)
    wanted = 0.5 * jnp.mean((velocity(policy, x, at) - v) ** 2, -1)
    exact.allclose(found.values()["imitate"], wanted, 1e-6)


def test_a_grid_policy_interpolates_its_estimates():
    t_src, t_dst = jnp.full(B, 0.9), jnp.full(B, 0.3)
    means, x = exact.normal(0, B, 3, 2), exact.normal(1, B, 2)
    policy = GridPolicy(LINEAR, t_src, t_dst, means)
    for t, wanted in (
        (0.9, means[:, 2]),
        (0.6, means[:, 1]),
        (0.3, means[:, 0]),
        (0.75, 0.5 * (means[:, 1] + means[:, 2])),
        (0.95, means[:, 2]),
        (0.1, means[:, 0]),
    ):
        exact.allclose(policy.denoised(x, jnp.full(B, t)), wanted, 1e-9)
        exact.allclose(policy.denoised(x, t), wanted, 1e-9)
    only = GridPolicy(LINEAR, t_src, t_dst, means[:, :1])
    exact.allclose(only.denoised(x, 0.5), means[:, 0], 1e-9)
    moved = jax.grad(lambda m: jnp.sum(policy._replace(means=m).denoised(x, 0.5)))
    exact.allclose(jnp.sum(moved(means), 1), jnp.ones((B, 2)), 1e-9)
    still = jax.grad(
        lambda m: jnp.sum(
            policy._replace(means=m).fixed(jnp.ones((B, 3), bool)).denoised(x, 0.5)
        )
    )
    vanishes(still(means))


def exact_grid(count, segments):
    """A network whose estimates are the denoiser along the flow of `DATA`."""
    net, flow = oracles.network(DATA, LINEAR), DATA.flow_map(LINEAR)

    def emit(params, x, t, cond=None):
        end = jnp.maximum(t - 1.0 / segments, 0.0)
        predictions = []
        for i in range(count):
            at = end + (t - end) * i / (count - 1)
            clean = DATA.denoised(LINEAR)(flow(x, t, at), at)
            predictions.append((x - clean) / t[:, None])
        return jnp.stack(predictions, 1), None, None

    return dataclasses.replace(net, functions={"policy": emit})


def test_pi_flow_on_a_fine_grid_rests_along_the_flow():
    def value(count, data=DATA):
        method = pi_flow(
            policy="grid", steps=2, teacher_ratio=0.0, states=3, substeps=64
        )
        teacher = oracles.network(data, LINEAR)
        found = play(method, policy=exact_grid(count, 2), teacher=teacher)
        return float(jnp.mean(found.values()["imitate"]))

    coarse, fine = value(3), value(33)
    assert fine < 0.1 * coarse
    assert value(33, oracles.Gaussian(0.0, 1.0)) > 10.0 * fine


def test_a_grid_policy_samples_by_its_estimates_alone():
    backbone = cases.networks()["backbone"]
    net = networks.policy(backbone, cases.SHAPE, components=5, mixture=False)
    params, eps = net.init(jax.random.key(0)), exact.normal(0, 4, 2)
    assert set(params["policy"]) == {"predictions"}
    method = pi_flow(policy="grid", sampling_substeps=4)
    cond = jnp.arange(4) % 3
    made = student_sampler(method, net, 1)(params, eps, cond, jax.random.key(0))
    predictions = net.functions["policy"](params, eps, jnp.ones(4), cond)[0]
    policy = GridPolicy(LINEAR, jnp.ones(4), jnp.zeros(4), eps[:, None] - predictions)
    exact.allclose(made, rollout(policy, eps, 1.0, 0.0, 4), 1e-6)
    with pytest.raises(ValueError, match="unknown policy 'grids'.*'grid'"):
        pi_flow(policy="grids")


def test_a_policy_network_is_its_backbone_with_a_mixture_around_it():
    backbone = cases.networks()["backbone"]
    net = networks.policy(backbone, cases.SHAPE, components=5)
    params = net.init(jax.random.key(0))
    x, t, cond = exact.normal(0, 4, 2), jnp.full(4, 0.6), jnp.arange(4) % 3
    bare = {k: v for k, v in params.items() if k != "policy"}
    out = net.apply(params, x, t, cond)
    exact.allclose(out, backbone.apply(bare, x, t, cond))
    predictions, log_std, logits = net.functions["policy"](params, x, t, cond)
    assert predictions.shape == (4, 5, 2)
    assert log_std.shape == (4,)
    assert logits.shape == (4, 5, 1)
    assert 0.01 < float(jnp.std(predictions - out[:, None])) < 0.5
    flat = networks.policy(backbone, cases.SHAPE, components=5, spread=0.0)
    same = flat.functions["policy"](flat.init(jax.random.key(0)), x, t, cond)[0]
    exact.allclose(same, jnp.broadcast_to(same[:, :1], same.shape))
