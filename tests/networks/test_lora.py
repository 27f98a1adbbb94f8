"""Adapters: one base, small trained products, any method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import networks
from distilljax.core.method import Follow, Role, batches
from distilljax.methods import build
from distilljax.networks.lora import LoRA, lora, with_lora
from distilljax.training.config import TrainConfig
from distilljax.training.cycle import build_cycle
from distilljax.training.roles import make_setup, run_mesh
from distilljax.training.state import create_frozen, create_state
from distilljax.training.update import all_params
from tests.methods import cases
from tests.networks.filled import filled

OPTIONS = {"critic_steps": 1, "gan_weight": 0, "steps": (1, 2)}


def small():
    return networks.mlp(cases.SHAPE, num_classes=cases.CLASSES, width=16, hidden=16)


def started(method, nets, **train):
    config = TrainConfig.of(
        {"cycles": 10, "batch_size": 16, "default": {"lr": 1e-2}, **train},
        roles=method.roles,
    )
    setup = make_setup(method, nets, config, cases.SHAPE, run_mesh(config))
    given = {"teacher": filled(nets["backbone"])}
    return setup, create_state(setup, given), create_frozen(setup, given)


def test_products_are_added_to_the_chosen_kernels():
    network = networks.dit((4, 4, 1), width=16, depth=2, heads=2, patch=2)
    base = filled(network)
    adapters = filled(lora(network, rank=2, match="qkv/kernel$"))
    assert set(adapters) == {"blocks.qkv.kernel"}
    pair = adapters["blocks.qkv.kernel"]
    assert pair["down"].shape == (2, 16, 2)
    assert pair["up"].shape == (2, 2, 48)
    found = LoRA("base", "lora", 0.5)({"base": base, "lora": adapters}, 0)
    wanted = base["blocks"]["qkv"]["kernel"] + 0.5 * pair["down"] @ pair["up"]
    np.testing.assert_allclose(found["blocks"]["qkv"]["kernel"], wanted, rtol=1e-6)
    found["blocks"]["qkv"]["kernel"] = base["blocks"]["qkv"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, found, base)


def test_convolutions_share_the_product_over_their_window():
    network = networks.unet(
        (4, 4, 1), channels=8, multipliers=(1,), blocks=1, attention_sizes=()
    )
    adapters = filled(lora(network, rank=2, match="first/kernel$"))
    pair = adapters["in_0_0.first.kernel"]
    assert pair["down"].shape == (3, 3, 8, 2)
    assert pair["up"].shape == (2, 8)
    base = filled(network)
    found = LoRA("base", "lora")({"base": base, "lora": adapters}, 0)
    gap = found["in_0_0"]["first"]["kernel"] - base["in_0_0"]["first"]["kernel"]
    np.testing.assert_allclose(
        gap, np.einsum("xyir,ro->xyio", pair["down"], pair["up"]), atol=1e-6
    )


def test_the_start_is_the_base_and_only_adapters_move():
    network = small()
    method = with_lora(build("dmd2", **OPTIONS), ("student", "fake_score"))
    assert set(method.trained) == {"student_lora", "fake_score_lora"}
    nets = {"backbone": network, "lora": lora(network, rank=2)}
    setup, state, frozen = started(method, nets)
    before = all_params(setup, state.params, frozen, state.step)
    jax.tree.map(np.testing.assert_array_equal, before["student"], frozen["teacher"])
    held = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    whole = sum(leaf.size for leaf in jax.tree.leaves(frozen["teacher"]))
    assert held < 0.8 * whole

    cycle = build_cycle(setup, method.phases)
    kept = jax.tree.map(np.asarray, frozen)
    for seed in range(2):
        state, metrics = cycle(
            state, frozen, cases.batch(batches(method.phases), seed=seed)
        )
    jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, frozen))
    after = all_params(setup, state.params, frozen, state.step)
    for role in ("student", "fake_score"):
        assert float(metrics[f"grad_norm/{role}_lora"]) > 0
        moved = jax.tree.map(
            lambda a, b: np.abs(a - b).max(), after[role], kept["teacher"]
        )
        assert max(jax.tree.leaves(moved)) > 1e-4
    apart = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), after["student"], after["fake_score"]
    )
    assert max(jax.tree.leaves(apart)) > 1e-5


def test_a_target_follows_the_adapter():
    method = with_lora(build("cm_cd", target_decay=0.5))
    assert method.roles["target_lora"].follow == Follow("student_lora", 0.5)
    assert method.roles["target"].derive == LoRA("teacher", "target_lora")
    network = small()
    nets = {"backbone": network, "lora": lora(network, rank=2)}
    setup, state, frozen = started(method, nets)
    start = jax.tree.map(np.asarray, state.params)
    state, _ = build_cycle(setup, method.phases)(state, frozen, cases.batch(1))

    def check(old, new, target):
        np.testing.assert_allclose(target, 0.5 * (old + new), rtol=1e-5, atol=1e-7)

    jax.tree.map(
        check,
        start["target_lora"],
        state.params["student_lora"],
        state.params["target_lora"],
    )


def test_gradients_equal_those_of_the_whole_network_along_the_product():
    network = small()
    base, adapters = filled(network), filled(lora(network, rank=3))
    derive = LoRA("teacher", "student_lora")
    x, t = jnp.ones((4, 2)), jnp.full((4,), 0.5)

    def loss(params):
        return jnp.sum(network.apply(params, x, t, jnp.zeros((4,), jnp.int32)) ** 2)

    def joined(adapters):
        return derive({"teacher": base, "student_lora": adapters}, 0)

    whole = jax.jit(jax.grad(loss))(joined(adapters))
    small_grads = jax.jit(jax.grad(lambda a: loss(joined(a))))(adapters)
    path = "block_0.up.kernel"
    outer = whole["block_0"]["up"]["kernel"]
    np.testing.assert_allclose(
        small_grads[path]["up"], adapters[path]["down"].T @ outer, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lora(small(), rank=0), "rank must be at least 1"),
        (lambda: lora(small(), match="qkv"), "no kernel of network 'mlp' matches"),
        (lambda: with_lora(build("scm"), ("studnt",)), "trained role 'studnt'"),
        (lambda: with_lora(build("scm"), base="techer"), "role 'techer'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_derived_role_needs_no_adapter_network_of_its_own_name():
    roles = with_lora(build("scm", learned_weight=False)).roles
    assert roles["student_lora"] == Role("lora", init="random")
    assert roles["student"].network == "backbone"
