"""A cycle of sCM, DMD2 and MeanFlow against FastGen's PyTorch, on this CPU.

    git clone https://github.com/NVlabs/FastGen
    git -C FastGen checkout 34f30e8ff1a563555fc0c7d59f1c1409dacd8af2
    python -m benchmarks.peers.fastgen --peer=FastGen --peer-python=.../bin/python

Both train a DiT of equal sizes in float32 by AdamW on labelled noise, with as many
threads: sCM distils a teacher without guidance, DMD2 has one step and no GAN, MeanFlow
no guidance. Neither keeps averages nor clips. The two processes take turns. Beside the
ratio of their times stand the operations of matrix products in a cycle.

Official code: NVlabs/FastGen, ``fastgen/methods``, Apache 2.0; it is fetched by the
user, and nothing of it is here.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.measure import Result, Scale
from distilljax import methods, networks
from distilljax.method import Method, batches
from distilljax.training import TrainConfig, build_cycle, create_state, make_setup
from distilljax.training.cost import matmul_flops
from distilljax.training.cycle import run_cycle
from distilljax.training.state import create_frozen

COMMIT = "34f30e8ff1a563555fc0c7d59f1c1409dacd8af2"
METHODS = ("scm", "dmd2", "mean_flow")
LIMIT, GOAL = 1.1, 0.9
SIZES = {
    "side": 32,
    "channels": 4,
    "patch": 4,
    "width": 384,
    "depth": 12,
    "heads": 6,
    "classes": 1000,
    "batch": 8,
    "critic_steps": 4,
}


class Peer:
    """FastGen's cycles in a process of its own; call it for the seconds of a block."""

    def __init__(
        self, python: str, path: str, method: str, sizes: dict[str, int], count: int
    ):
        """Starts it; it has trained one cycle when this returns."""
        settings = {"method": method, "sizes": sizes, "threads": os.cpu_count()}
        script = pathlib.Path(__file__).with_name("fastgen_step.py")
        self._count = count
        self._process = subprocess.Popen(
            [python, str(script), str(pathlib.Path(path).resolve())]
            + [json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told = json.loads(self._answer())

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the peer ended with code {self._process.wait()}: see what it printed,"
                " and pass a checkout as --peer and a Python that has what it needs as "
                "--peer-python"
            )
        return line

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()

    def __call__(self) -> float:
        """Seconds of a block."""
        self._process.stdin.write(f"{self._count}\n")
        self._process.stdin.flush()
        return float(self._answer())


def method_of(name: str, sizes: dict[str, int]) -> Method:
    """Our method as the peer's defaults have it."""
    options: dict[str, dict[str, Any]] = {
        "scm": {"learned_weight": False},
        "dmd2": {"steps": (1,), "gan_weight": 0, "critic_steps": sizes["critic_steps"]},
        "mean_flow": {"teacher": False},
    }
    return methods.build(name, **options[name])


class Ours:
    """Our cycles on one batch; call it for the seconds of a block."""

    def __init__(self, name: str, sizes: dict[str, int], count: int):
        """Compiles nothing yet."""
        shape = (sizes["side"], sizes["side"], sizes["channels"])
        method = method_of(name, sizes)
        net = networks.dit(
            shape,
            patch=sizes["patch"],
            width=sizes["width"],
            depth=sizes["depth"],
            heads=sizes["heads"],
            num_classes=sizes["classes"],
            second_time=name == "mean_flow",
            qk_norm=False,
        )
        role = {"optimizer": "adamw", "lr": 1e-4, "ema": None, "clip": None}
        config = TrainConfig.of(
            {"batch_size": sizes["batch"], "cycles": 10**6, "default": role},
            roles=method.roles,
        )
        lead = (batches(method.phases), 1, sizes["batch"])
        key = jax.random.key(0)
        self._batch = {
            "x0": jax.random.normal(key, (*lead, *shape)),
            "cond": jnp.zeros(lead, jnp.int32),
        }
        setup = make_setup(
            method,
            {"backbone": net},
            config,
            shape,
            batch=jax.eval_shape(lambda: self._batch),
        )
        needed = {role.init for role in method.roles.values()} | set(method.roles)
        given = {"teacher": net.init(key)} if "teacher" in needed else {}
        self._state, self._frozen = (
            create_state(setup, given),
            create_frozen(setup, given),
        )
        leaves = jax.tree.leaves(self._state.params["student"])
        self.parameters = sum(leaf.size for leaf in leaves)
        self.flops = matmul_flops(
            functools.partial(run_cycle, setup, method.phases),
            self._state,
            self._frozen,
            self._batch,
        )
        self._cycle = build_cycle(setup, method.phases)
        self._block = measure.timed(self._step, count)

    def _step(self) -> Any:
        self._state, metrics = self._cycle(self._state, self._frozen, self._batch)
        return metrics

    def __call__(self) -> float:
        """Seconds of a block."""
        return self._block()


def compare(
    name: str, python: str, path: str, scale: Scale, sizes: dict[str, int]
) -> list[Result]:
    """The ratios of one method: of seconds, and of operations."""
    count = scale.steps(4)
    ours = Ours(name, sizes, count)
    with Peer(python, path, name, sizes, count) as peer:
        pairs = measure.interleaved(ours, peer, scale.pairs, warm=1)
    found = measure.ratio(
        f"{name} cycle",
        f"ours / FastGen {COMMIT[:7]} (torch {peer.told['torch']})",
        pairs,
        limit=LIMIT,
        goal=GOAL,
        steps=count,
    )
    found["parameters"] = [ours.parameters, peer.told["parameters"]]
    found["sizes"] = sizes
    operations = ours.flops / peer.told["flops"]
    return [
        found,
        {
            "name": f"{name} operations",
            "what": "matrix products of a cycle, ours / FastGen",
            "value": operations,
            "limit": 1.05,
            "goal": 1.0,
            "passed": operations <= 1.05,
            "flops": [ours.flops, peer.told["flops"]],
        },
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peer", required=True, help="checkout of NVlabs/FastGen")
    parser.add_argument("--peer-python", required=True, help="Python that runs it")
    parser.add_argument("--methods", default=",".join(METHODS))
    for name, size in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    given, rest = parser.parse_known_args(arguments)
    sizes = {name: getattr(given, name) for name in SIZES}

    def run(scale: Scale) -> list[Result]:
        return [
            result
            for name in given.methods.split(",")
            for result in compare(name, given.peer_python, given.peer, scale, sizes)
        ]

    return measure.main(run, "peers.fastgen", __doc__, rest)


if __name__ == "__main__":
    sys.exit(main())
