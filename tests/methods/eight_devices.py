"""Run in its own process on 8 fake devices; prints what `test_sharding` checks.

    python -m tests.methods.eight_devices '[["dmd2", "mlp", {"fsdp": 8}], ...]'

A reference on one device is compiled once for all meshes of a method in a row.
"""

import functools
import importlib
import json
import sys
import time

import jax
import numpy as np

from distilljax import networks
from distilljax.core.method import batches
from distilljax.training import placement, update
from distilljax.training.collectives import collectives, host_transfers
from distilljax.training.cycle import build_cycle
from distilljax.training.feed import place
from distilljax.training.state import leaves
from tests.methods import cases

# Momentum keeps the gradient in the state, and no root or sign blows up its rounding.
SGD = {"optimizer": "sgd", "lr": 0.1, "betas": (0.9, 0.9), "ema": 0.9}
IMAGE = (4, 4, 2)
SIZES = {"mlp": 1024, "dit": 64, "lora": 64}


def dits():
    backbone = networks.dit(
        IMAGE, width=32, depth=2, heads=2, mlp_ratio=2.0, second_time=True,
        num_classes=cases.CLASSES, tap_layers=(0, 1),
    )  # fmt: skip
    return cases.networks(
        backbone=backbone,
        discriminator=networks.head(
            networks.taps_shape(backbone, IMAGE),
            width=32,
            num_classes=cases.CLASSES + 1,
        ),
    )


def loose():
    """Networks whose activations are not held split along the batch."""
    for name in ("dit", "embeddings"):
        module = importlib.import_module(f"distilljax.networks.{name}")
        module.rows_first = lambda h: h


def gathered():
    """Updates that put every parameter on every device first."""
    collect = update.all_params

    def everywhere(setup, *arguments):
        return placement.put(
            collect(setup, *arguments),
            jax.tree.map(lambda _: setup.replicated, collect(setup, *arguments)),
        )

    update.all_params = everywhere


# What may be wrong, so that the tests are seen to find it.
FAULTS = {"loose": loose, "gathered": gathered}


def program(name, net, mesh, axes="auto"):
    size, shape = SIZES[net], cases.SHAPE if net == "mlp" else IMAGE
    nets, built = None if net == "mlp" else dits(), cases.method(name)
    if net == "lora":
        nets["lora"] = networks.lora(nets["backbone"], rank=4)
        built = networks.with_lora(built, ("student", "fake_score"))
    explicit = None
    if axes == "explicit":
        sizes = [mesh.get(axis, 1) for axis in placement.AXES]
        explicit = jax.make_mesh(sizes, placement.AXES)
    setup, state, frozen = cases.setup(
        name, batch_size=size, mesh=mesh, default=SGD, shape=shape, on=explicit,
        nets=nets, built=built,
    )  # fmt: skip
    cycle = build_cycle(setup, setup.method.phases)
    data = cases.batch(batches(setup.method.phases), size, shape=shape)
    data = place(setup, jax.device_get(data))
    return cycle, state, frozen, data, gradient_bytes(setup, state)


def measured(compiled):
    memory = compiled.memory_analysis()
    return {
        "flops": compiled.cost_analysis()["flops"],
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }


def held(tree):
    """Bytes on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def far(a, b):
    """Largest difference of two trees, in units of the largest number of a leaf."""
    gaps = jax.tree.map(
        lambda x, y: float(np.max(np.abs(x - y)) / (1e-3 + np.max(np.abs(x)))), a, b
    )
    return max(jax.tree.leaves(gaps), default=0.0)


COMPILED = []


def count(event, seconds, **about):
    """Notes every trace, lowering and compilation (cached ones included)."""
    if event.startswith("/jax/core/compile/"):
        COMPILED.append(event)


@functools.lru_cache(1)
def alone(name, net):
    cycle, state, frozen, data, _ = program(name, net, {"data": 1})
    weights = held((state.params, state.opt, state.ema))
    compiled = cycle.lower(state, frozen, data).compile()
    state, metrics = compiled(state, frozen, data)
    return measured(compiled), weights, jax.device_get((state, metrics))


def layer(tree):
    """Bytes of the largest parameter of one layer; blocks are stacks of them."""
    sizes = {
        path: leaf.nbytes // (len(leaf) if path.startswith("blocks/") else 1)
        for path, leaf in leaves(tree).items()
    }
    return max(sizes.values())


def gradient_bytes(setup, state):
    """Bytes of the gradients of a cycle's updates, those of a repeated phase once.

    A phase that merges sees the gradient of every term.
    """
    return sum(
        leaf.nbytes * (1 if phase.merge is None else len(phase.terms))
        for phase in setup.method.phases
        for role in phase.trains
        for leaf in jax.tree.leaves(state.params[role])
    )


def compared(name, net, mesh, kind="auto"):
    began = time.perf_counter()
    wanted, weights, (one, logs) = alone(name, net)
    if kind in FAULTS:
        FAULTS[kind]()
    cycle, state, frozen, data, ideal = program(name, net, mesh, kind)
    largest = max(layer(tree) for tree in [*state.params.values(), *frozen.values()])
    share = held((state.params, state.opt, state.ema)) / weights
    compiled = cycle.lower(state, frozen, data).compile()
    found = measured(compiled)
    # A compiled program refuses a state that lives elsewhere; the jitted one would
    # compile again, which is counted where it is cheap.
    step = cycle if name == "flow_matching" else compiled
    first, metrics = step(state, frozen, data)
    many, others = jax.device_get((first, metrics))
    before = len(COMPILED)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            first, metrics = step(first, frozen, data)
    again = COMPILED[before:]
    moved = collectives(compiled)
    return {
        **{key: found[key] / wanted[key] for key in wanted},
        "held": share,
        "params": far(one.params, many.params),
        "gradients": far(one.opt, many.opt),
        "ema": far(one.ema, many.ema),
        "metrics": far(logs, others),
        "compiled": before,
        "recompiled": again,
        "host": host_transfers(compiled),
        "layer": largest,
        "reduced": sum(c.bytes for c in moved if c.kind == "all-reduce") / ideal,
        "collectives": [[c.kind, c.shapes, c.bytes, c.looped] for c in moved],
        "seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    jax.monitoring.register_event_duration_secs_listener(count)
    for case in json.loads(sys.argv[1]):
        row = {"case": case, **compared(*case)}
        print(json.dumps(row), flush=True)
