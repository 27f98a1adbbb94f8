"""Toy runs: from a pretrained net every method becomes a few-step generator in 2-D.

The measure is the energy distance to fresh data. ``noise`` is that of the pretrained
net sampled with as many steps, ``floor`` that of two fresh sets of data.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.core.method import batches
from distilljax.evaluation import energy_distance
from distilljax.methods import CATALOGUE, build
from distilljax.networks import head, mlp, policy
from distilljax.sampling.generation import student_sampler, teacher_sampler
from distilljax.training.config import TrainConfig
from distilljax.training.cycle import build_cycle
from distilljax.training.roles import make_setup, network_of
from distilljax.training.state import create_frozen, create_state
from tests.methods import cases

BATCH = 256
MODES = 6
POINTS = 1000


def data(key, shape):
    """Six modes on a circle; a label holds two opposite ones."""
    a, b = jax.random.split(key)
    mode = jax.random.randint(a, shape, 0, MODES)
    angle = 2 * jnp.pi * mode / MODES
    mean = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    return mean + 0.15 * jax.random.normal(b, (*shape, 2)), mode % cases.CLASSES


def train(method, nets, params, cycles, lr, seed=0):
    config = TrainConfig.of(
        {
            "cycles": cycles,
            "batch_size": BATCH,
            "default": {"lr": lr, "schedule": "cosine", "clip": 1.0},
        }
    )
    setup = make_setup(method, nets, config, cases.SHAPE)
    state, frozen = create_state(setup, params), create_frozen(setup, params)
    draw = jax.jit(data, static_argnums=1)
    phases = ()
    for i in range(cycles):
        if method.phases_at(i) is not phases:
            phases = method.phases_at(i)
            cycle = build_cycle(setup, phases)
        shape = (batches(phases), 1, BATCH)
        x0, cond = draw(jax.random.fold_in(jax.random.key(seed), i), shape)
        state, metrics = cycle(state, frozen, {"x0": x0, "cond": cond})
    assert float(metrics["skipped/student"]) == 0
    return state.params["student"]


def distance(method, nets, params, steps):
    """Mean energy distance over three noise seeds."""
    network = network_of(method.roles, method.sampling.role, nets)
    run = jax.jit(student_sampler(method, network, steps))
    found = []
    for seed in range(3):
        keys = jax.random.split(jax.random.key(100 + seed), 3)
        real, cond = data(keys[0], (POINTS,))
        eps = jax.random.normal(keys[1], (POINTS, 2))
        fake = np.asarray(run(params, eps, cond, keys[2]))
        found.append(energy_distance(fake, real).value)
    return float(np.mean(found))


@pytest.fixture(scope="module")
def pretrained():
    nets = cases.networks()
    method = cases.method("flow_matching")
    params = train(method, nets, {}, 1500, 3e-3)
    fine = distance(method, nets, params, 32)
    coarse = distance(method, nets, params, 1)
    assert fine < 0.1 * coarse, (fine, coarse)
    return nets, params


@pytest.mark.parametrize(
    "name",
    cases.with_marks(n for n in sorted(CATALOGUE) if cases.CASES[n].few_steps),
)
def test_a_method_makes_a_one_step_generator(pretrained, name):
    nets, teacher = pretrained
    case, method = cases.CASES[name], cases.method(name)
    given = {**cases.params(nets, method), "teacher": teacher}
    student = train(method, nets, given, case.cycles, case.lr)
    before = distance(cases.method("flow_matching"), nets, teacher, 1)
    after = distance(method, nets, student, 1)
    print(f"{name}: {before:.4f} -> {after:.4f}")
    assert after < 0.5 * before, (name, before, after)


# Options with parts of their own: name, options beside the case's, networks.
OPTIONS = {
    "adversarial ctm": (
        "ctm",
        {"gan_weight": 0.1, "gan_start": 100, "features": None},
        {"discriminator": head(jnp.zeros((1, 2)), num_classes=cases.CLASSES, width=32)},
    ),
    "grid policy": (
        "pi_flow",
        {"policy": "grid"},
        {
            "policy": policy(
                cases.networks()["backbone"], cases.SHAPE, mixture=False, spread=0.0
            )
        },
    ),
    "told trajectory matching": ("tdm", {"told_end": True, "separate": False}, {}),
    "told several steps": ("dmd2", {"told_start": True}, {}),
    "f-distill on the teacher": ("f_distill", {"features": "teacher"}, {}),
    "patches": (
        "sana_sprint",
        {},
        {
            "discriminator": head(
                (jnp.zeros((1, 32)),) * 2,
                kind="patches",
                product=True,
                num_classes=cases.CLASSES,
                width=32,
            )
        },
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_an_option_makes_a_one_step_generator(pretrained, name):
    _, teacher = pretrained
    base, options, changed = OPTIONS[name]
    nets, case = cases.networks(**changed), cases.CASES[base]
    method = build(base, **{**case.options, **options})
    given = {**cases.params(nets, method), "teacher": teacher}
    student = train(method, nets, given, case.cycles, case.lr)
    before = distance(cases.method("flow_matching"), nets, teacher, 1)
    after = distance(method, nets, student, 1)
    print(f"{name}: {before:.4f} -> {after:.4f}")
    assert after < 0.5 * before, (name, before, after)


@pytest.mark.full
def test_a_student_follows_the_scale_that_it_is_told():
    sizes = {"width": 32, "hidden": 32, "blocks": 2, "embedding": 16}
    plain = mlp(cases.SHAPE, num_classes=cases.CLASSES, **sizes)
    aware = mlp(
        cases.SHAPE, num_classes=cases.CLASSES, guidance=(0.1, 1000.0, 16), **sizes
    )
    nets = {"backbone": plain, "student": aware, "target": aware}
    teacher = train(
        cases.method("flow_matching"), nets | {"student": plain}, {}, 1500, 3e-3
    )
    method = build("lcm", segments=12, guidance=(1.0, 4.0), embed=True)
    student = train(method, nets, {"teacher": teacher}, 600, 2e-3)
    eps = jax.random.normal(jax.random.key(1), (POINTS, 2))
    rest = jnp.arange(POINTS) % cases.CLASSES, jax.random.key(0)
    for near, far in ((1.0, 4.0), (4.0, 1.0)):
        wanted = jax.jit(teacher_sampler(plain, 64, guidance=near))(teacher, eps, *rest)
        errors = [
            float(jnp.sqrt(jnp.mean((run(student, eps, *rest) - wanted) ** 2)))
            for run in (
                jax.jit(student_sampler(method, aware, 1, guidance=w))
                for w in (near, far)
            )
        ]
        print(f"teacher at {near}: told it {errors[0]:.3f}, told {far} {errors[1]:.3f}")
        assert errors[0] < 0.9 * errors[1]
