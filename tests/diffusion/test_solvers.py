"""Solvers: order of convergence, ends, and use inside losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import paths, solvers
from distilljax.diffusion.flow_maps import AffineFlowMap, ode_flow_map
from distilljax.diffusion.oracles import Gaussian, prediction
from distilljax.diffusion.predictions import KINDS
from distilljax.diffusion.solvers import (
    DDIM,
    SDE,
    DPMSolverPP2M,
    Euler,
    FireFlow,
    Heun,
    Midpoint,
    solve,
)
from distilljax.diffusion.times import EvenGrid, KarrasGrid
from tests.exact import PATHS, allclose, gaussian, normal

pytestmark = pytest.mark.usefixtures("x64")
ODE = (Euler(), Heun(), Midpoint(), FireFlow(), DDIM(), DPMSolverPP2M())
RANGES = {
    "linear": (0.95, 0.05),
    "vp": (0.7, 0.2),
    "edm": (3.0, 0.1),
    "trigflow_half": (1.2, 0.2),
}


def name_of(value):
    return type(value).__name__


def field(path, kind="velocity", oracle=None):
    return prediction(gaussian() if oracle is None else oracle, path, kind)


@pytest.mark.parametrize("solver", [*ODE, SDE(0.0)], ids=name_of)
@pytest.mark.parametrize("name", sorted(RANGES))
def test_the_error_falls_at_the_order_of_the_solver(name, solver):
    path, (start, end) = PATHS[name], RANGES[name]
    counts = np.array([64, 128, 256])
    x = normal(0, 4, 2)
    # One run: every sample has its own times, padded with steps of length zero.
    index = np.minimum(np.arange(257)[:, None], counts) / counts
    times = jnp.repeat(jnp.asarray(start + (end - start) * index), 4, axis=1)

    @jax.jit
    def run(x):
        return solve(
            field(path, solver.kind),
            jnp.tile(x, (3, 1)),
            times,
            path=path,
            solver=solver,
            kind=solver.kind,
            key=jax.random.key(0),
        )

    wanted = gaussian().flow_map(path)(x, start, end)
    errors = jnp.abs(run(x).reshape(3, 4, 2) - wanted).max(axis=(1, 2))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    # On a Gaussian, Midpoint gains an order on the linear and EDM paths.
    gain = 1.0 if isinstance(solver, Midpoint) else 0.0
    assert solver.order - 0.25 < slope < solver.order + gain + 0.25
    assert float(errors[-1]) < (0.02 if solver.order == 1 else 1e-4)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *(("linear", solver) for solver in ODE),
        *(
            (name, s)
            for name in ("edm", "trigflow_half")
            for s in (Heun(), DPMSolverPP2M())
        ),
    ],
)
def test_noise_becomes_data_with_finite_gradients_in_float32(name, solver):
    path = PATHS[name]
    grid = KarrasGrid() if name == "edm" else EvenGrid()
    times = grid(40, path)
    oracle = Gaussian(*(leaf.astype(jnp.float32) for leaf in gaussian()))
    start = path.start(normal(0, 4, 2).astype(jnp.float32))

    def run(x, std):
        v = field(path, solver.kind, oracle._replace(std=std))
        out = solve(v, x, times, path=path, solver=solver, kind=solver.kind)
        return out.sum(), out

    both = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))
    slopes, found = both(start, oracle.std)
    assert found.dtype == jnp.float32
    wanted = gaussian().flow_map(path)(start.astype(jnp.float64), path.t_max, 0.0)
    np.testing.assert_allclose(found, wanted, atol=0.2 if solver.order == 1 else 0.05)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


def test_dpm_solver_is_the_published_multistep():
    path, x = PATHS["vp"], normal(0, 4, 2)
    t = jnp.array([0.9, 0.7, 0.55])
    denoised = field(path, "x0")

    def lam(u):
        return jnp.log(path.alpha(u) / path.sigma(u))

    def update(x, d, now, after):
        h = lam(after) - lam(now)
        ratio = path.sigma(after) / path.sigma(now)
        return ratio * x - path.alpha(after) * jnp.expm1(-h) * d

    d0 = denoised(x, t[0])
    x1 = update(x, d0, t[0], t[1])
    d1 = denoised(x1, t[1])
    r = (lam(t[1]) - lam(t[0])) / (lam(t[2]) - lam(t[1]))
    wanted = update(x1, (1 + 1 / (2 * r)) * d1 - d0 / (2 * r), t[1], t[2])
    found = solve(denoised, x, t, path=path, solver=DPMSolverPP2M(), kind="x0")
    allclose(found, wanted)


def test_heun_on_edm_is_the_published_sampler():
    path, times = paths.edm(), KarrasGrid()(6, paths.edm())
    x = path.start(normal(0, 4, 2))
    denoised = field(path, "x0")

    def slope(x, t):
        return (x - denoised(x, t)) / t

    wanted = x
    for now, after in zip(times[:-1], times[1:], strict=True):
        d = slope(wanted, now)
        ahead = wanted + (after - now) * d
        if after > 0:
            ahead = wanted + (after - now) * 0.5 * (d + slope(ahead, after))
        wanted = ahead
    for kind in ("x0", "F"):
        found = solve(field(path, kind), x, times, path=path, kind=kind)
        allclose(found, wanted, 1e-9)


@pytest.mark.parametrize(
    ("name", "solver"),
    [("edm", Heun()), ("edm", DPMSolverPP2M()), *(("vp", s) for s in (*ODE, SDE()))],
)
def test_networks_are_never_asked_below_the_path_s_smallest_time(name, solver):
    path = PATHS[name]

    def strict(x, t):
        return jnp.where(t < path.t_min, jnp.nan, 1.0) * field(path, "F")(x, t)

    @jax.jit
    def run(x):
        key = jax.random.key(0)
        out = solve(
            strict, x, (0.1, 0.01, 0.0), path=path, solver=solver, kind="F", key=key
        )
        if solver.noisy:
            return out, out
        back = solve(strict, x, (0.0, 0.01, 0.1), path=path, solver=solver, kind="F")
        return out, back

    for found in run(normal(0, 2, 2)):
        assert np.all(np.isfinite(found))


@pytest.mark.parametrize("solver", [Heun(), DPMSolverPP2M()], ids=name_of)
def test_every_kind_of_field_gives_the_same_trajectory(solver):
    path, times = paths.linear(), (0.9, 0.6, 0.3, 0.0)

    @jax.jit
    def run(x):
        return {
            kind: solve(
                field(path, kind), x, times, path=path, solver=solver, kind=kind
            )
            for kind in KINDS
        }

    found = run(normal(0, 4, 2))
    # x0 and score leave the noise open at t = 0: Heun's last step is DDIM's there.
    last = solve(field(path), normal(0, 4, 2), times[:-1], path=path, solver=solver)
    jumped = solve(field(path), last, times[-2:], path=path, solver=DDIM())
    for kind, end in found.items():
        is_open = kind in ("x0", "score") and isinstance(solver, Heun)
        allclose(end, jumped if is_open else found["velocity"], 1e-10)


@pytest.mark.parametrize("name", ["linear", "edm"])
def test_euler_and_ddim_agree_where_the_path_is_straight(name):
    path, x, times = PATHS[name], normal(0, 4, 2), (1.0, 0.6, 0.2)
    euler = solve(field(path), x, times, path=path, solver=Euler())
    ddim = solve(field(path), x, times, path=path, solver=DDIM())
    sde = solve(
        field(path), x, times, path=path, solver=SDE(0.0), key=jax.random.key(0)
    )
    allclose(ddim, euler)
    allclose(sde, euler)


@pytest.mark.parametrize("solver", [FireFlow(), Midpoint(), DDIM()], ids=name_of)
@pytest.mark.parametrize("name", ["linear", "edm", "trigflow_half"])
def test_inversion_goes_back(name, solver):
    path, x0 = PATHS[name], gaussian().sample(jax.random.key(1), 4)
    times = tuple(jnp.tan(jnp.linspace(0.0, 1.1, 200)).tolist())
    times = tuple(np.asarray(path.time_of_angle(jnp.arctan(jnp.array(times)))).tolist())
    wanted = gaussian().flow_map(path)(x0, 0.0, times[-1])
    noisy = solve(field(path), x0, times, path=path, solver=solver)
    np.testing.assert_allclose(noisy, wanted, atol=0.03)
    back = solve(field(path), noisy, times[::-1], path=path, solver=solver)
    np.testing.assert_allclose(back, x0, atol=0.03)


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, 1.0)], ids=["falling", "rising"])
@pytest.mark.parametrize("solver", [FireFlow(), Midpoint()], ids=name_of)
def test_second_order_on_a_linear_equation_in_both_directions_of_time(solver, ends):
    """``x' = (1 + 2t)(x - sin 3t) + 3 cos 3t``, so ``x = sin 3t + c exp(t + t^2)``."""

    def exact(c, t):
        return jnp.sin(3 * t) + c * jnp.exp(t + t**2)

    def v(x, t):
        t = t[:, None]
        return (1 + 2 * t) * (x - jnp.sin(3 * t)) + 3 * jnp.cos(3 * t)

    (begin, end), counts = ends, np.array([64, 128, 256])
    # One run: every sample has its own times, padded with steps of length zero.
    index = np.minimum(np.arange(257)[:, None], counts) / counts
    times = jnp.repeat(jnp.asarray(begin + (end - begin) * index), 4, axis=1)
    c = jnp.tile(normal(0, 4, 1), (3, 1))

    @jax.jit
    def there_and_back(x):
        there = solve(v, x, times, path=paths.linear(), solver=solver)
        back = solve(v, there, times[::-1], path=paths.linear(), solver=solver)
        return there, back

    there, back = there_and_back(exact(c, begin))
    for found, wanted, order in (
        (there, exact(c, end), 2.0),
        # The way back undoes the leading error.
        (back, exact(c, begin), 3.0),
    ):
        errors = jnp.abs(found - wanted).reshape(3, 4).mean(axis=1)
        slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert abs(slope - order) < 0.05


def test_fireflow_is_the_published_solver_and_exact_on_straight_lines():
    """Two steps by hand with one evaluation each after the first."""
    path, x = paths.linear(), normal(0, 4, 2)
    v, t = field(path), (0.9, 0.5, 0.2)
    first = v(x, 0.9)
    middle = v(x - 0.2 * first, 0.7)
    moved = x - 0.4 * middle
    wanted = moved - 0.3 * v(moved - 0.15 * middle, 0.35)
    allclose(solve(v, x, t, path=path, solver=FireFlow()), wanted)
    found = solve(lambda x, t: 0 * x + 3.0, x, t, path=path, solver=FireFlow())
    allclose(found, x - 0.7 * 3.0)


def test_a_full_sde_has_the_law_of_the_data():
    path, oracle = paths.trigflow(0.5), gaussian()
    start = path.start(normal(0, 5000, 2))

    @jax.jit
    def run(x, key):
        times = EvenGrid()(128, path)
        return solve(field(path), x, times, path=path, solver=SDE(1.0), key=key)

    found = run(start, jax.random.key(1))
    np.testing.assert_allclose(found.mean(axis=0), oracle.mean, atol=0.03)
    np.testing.assert_allclose(found.std(axis=0), oracle.std, rtol=0.05)
    # Fresh noise: hardly anything of the start is left.
    share = np.corrcoef(found[:, 0], start[:, 0])[0, 1]
    assert abs(share) < 0.1


@pytest.mark.parametrize("solver", [*ODE, SDE()], ids=name_of)
def test_evaluations_are_counted_exactly(solver):
    calls = []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return x

    times = EvenGrid()(25, paths.linear())
    solve(
        counted, normal(0, 2, 2), times, path=paths.linear(), solver=solver,
        key=jax.random.key(0),
    ).block_until_ready()  # fmt: skip
    jax.effects_barrier()
    assert len(calls) == solver.evaluations(25)
    assert Heun().evaluations(25) == 50


def test_a_solve_is_one_scan():
    path = paths.linear()
    program = jax.make_jaxpr(
        lambda x: solve(field(path), x, EvenGrid()(30, path), path=path)
    )(normal(0, 4, 2))
    text = str(program)
    assert text.count("scan[") == 1
    assert "while[" not in text


def test_gradients_pass_through_a_solve():
    path, x = paths.linear(), normal(0, 4, 2)

    @jax.jit
    def end(mean):
        oracle = gaussian()._replace(mean=mean)
        v = field(path, oracle=oracle)
        return solve(v, x, (1.0, 0.5, 0.2), path=path).sum()

    mean, h = gaussian().mean, 1e-5
    slope = jax.grad(end)(mean)
    for i in range(2):
        step = jnp.zeros(2).at[i].set(h)
        found = (end(mean + step) - end(mean - step)) / (2 * h)
        allclose(slope[i], found, 1e-8)


def test_times_may_be_traced_and_differ_by_sample():
    path, x = paths.linear(), normal(0, 4, 2)
    t, s = jnp.array([1.0, 0.8, 0.6, 0.4]), jnp.array([0.5, 0.4, 0.0, 0.1])
    whole = jax.jit(lambda t, s: solve(field(path), x, [t, s], path=path))(t, s)
    for i in range(4):
        one = solve(field(path), x[i : i + 1], [t[i], s[i]], path=path)
        allclose(whole[i : i + 1], one)
    rows = jax.vmap(lambda x, t, s: solve(field(path), x[None], [t, s], path=path)[0])
    allclose(rows(x, t, s), whole)


def test_a_trajectory_holds_the_state_after_every_step():
    path, x = paths.linear(), normal(0, 4, 2)
    end, states = solve(field(path), x, (1.0, 0.5, 0.0), path=path, trajectory=True)
    assert states.shape == (2, 4, 2)
    allclose(states[1], end)
    allclose(states[0], solve(field(path), x, (1.0, 0.5), path=path))


@pytest.mark.parametrize(
    "solver", [DDIM(), DPMSolverPP2M(), Heun(), SDE(0.0)], ids=name_of
)
def test_bridges_reach_the_predicted_data(solver):
    path, clean = paths.bridge_linear(0.4), normal(0, 4, 2)
    y, eps = normal(1, 4, 2), normal(2, 4, 2)
    found = solve(
        lambda x, t: clean, path.start(eps, y), (1.0, 0.6, 0.3, 0.0), path=path,
        solver=solver, kind="x0", y=y, key=jax.random.key(0),
    )  # fmt: skip
    allclose(found, clean, 1e-10)


def test_states_are_at_least_float32():
    x = normal(0, 4, 2).astype(jnp.bfloat16)
    for solver in (Heun(), DPMSolverPP2M()):
        found = solve(
            lambda x, t: x.astype(jnp.bfloat16), x, (1.0, 0.5, 0.0),
            path=paths.linear(), solver=solver, kind="x0",
        )  # fmt: skip
        assert found.dtype == jnp.float32


@pytest.mark.parametrize(
    ("rho", "path"),
    [(1.0, paths.linear()), (7.0, paths.edm()), (None, paths.edm())],
    ids=["even", "edm", "default"],
)
def test_a_solver_is_a_flow_map(rho, path):
    f = ode_flow_map(field(path), path, steps=32, rho=rho)
    assert f.path == path
    top = 1.0 if rho == 1.0 else 20.0
    x = normal(0, 4, 2) * path.scale(jnp.asarray(top))
    t, s = jnp.array([1.0, 0.8, 0.6, 0.3]) * top, jnp.array([0.0, 0.1, 0.6, 0.2])
    wanted = gaussian().flow_map(path)(x, t, s)
    np.testing.assert_allclose(jax.jit(f)(x, t, s), wanted, atol=0.02)
    np.testing.assert_array_equal(f(x, 0.5, 0.5), x)
    slope = jax.jacfwd(lambda u: f(x, u, 0.05 * top))(0.5 * top)
    assert np.all(np.isfinite(slope))


def test_a_flow_map_costs_what_its_solver_says():
    x = normal(0, 2, 2)
    two = ode_flow_map(field(paths.linear()), paths.linear(), steps=2, solver=Euler())
    wanted = solve(
        field(paths.linear()), x, (0.8, 0.5, 0.2), path=paths.linear(), solver=Euler()
    )
    allclose(two(x, 0.8, 0.2), wanted)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda v, x, p: solve(v, x, (1.0,), path=p), "0 steps"),
        (lambda v, x, p: solve(v, x, (), path=p), "0 steps"),
        (lambda v, x, p: solve(v, x, (1.0, 0.5, 0.7), path=p), "must all fall"),
        (lambda v, x, p: solve(v, x, (1.0, 1.0), path=p), "must all fall"),
        (lambda v, x, p: solve(v, x, (1.0, 0.0), path=p, solver=SDE()), "pass key="),
        (
            lambda v, x, p: solve(
                v, x, (0.0, 1.0), path=p, solver=SDE(), key=jax.random.key(0)
            ),
            "must fall for SDE",
        ),
        (lambda v, x, p: solve(v, x, (1.0, 0.0), path=p, kind="vel"), "'velocity'"),
        (lambda v, x, p: SDE(1.5), "eta must lie in"),
        (lambda v, x, p: Heun().evaluations(0), "at least 1, got 0"),
        (lambda v, x, p: ode_flow_map(v, p, steps=0), "at least 1, got 0"),
        (lambda v, x, p: ode_flow_map(v, p, solver=SDE()), "SDE is not"),
    ],
)
def test_bad_input_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call(field(paths.linear()), jnp.zeros((1, 2)), paths.linear())


def test_solvers_are_values():
    assert Heun() == Heun()
    assert SDE(0.5) != SDE(0.4)
    assert len({Euler(), Euler(), DDIM()}) == 2


def test_the_ancestral_noise_is_the_posterior_of_ddpm():
    path, t, s = PATHS["vp"], jnp.asarray(0.7), jnp.asarray(0.4)
    step = path.alpha(t) / path.alpha(s)
    beta = 1 - step**2
    posterior = path.sigma(s) ** 2 / path.sigma(t) ** 2 * beta
    allclose(solvers.ancestral_std(path, t, s) ** 2, posterior)


def test_a_solver_may_stand_in_for_a_student():
    path, x = paths.trigflow(0.5), normal(0, 4, 2)
    teacher = ode_flow_map(field(path), path, steps=64)
    student = gaussian().affine_map(path)
    assert isinstance(student, AffineFlowMap)
    np.testing.assert_allclose(teacher(x, 1.5, 0.3), student(x, 1.5, 0.3), atol=1e-3)
