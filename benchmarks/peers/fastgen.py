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
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.measure import Result, Scale
from benchmarks.peers import side
from benchmarks.peers.side import Peer, Side
from distilljax import methods, networks
from distilljax.core.binding import Network
from distilljax.core.method import Method

PEER = Peer(
    "NVlabs/FastGen",
    "34f30e8ff1a563555fc0c7d59f1c1409dacd8af2",
    "fastgen/networks/DiT/network.py",
    "fastgen",
)
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


class Process:
    """FastGen's cycles in a process of its own; call it for the seconds of one."""

    def __init__(
        self, python: str, path: pathlib.Path, method: str, sizes: dict[str, int]
    ):
        """Starts it; it has trained one cycle when this returns."""
        settings = {"method": method, "sizes": sizes, "threads": os.cpu_count()}
        script = pathlib.Path(__file__).with_name("fastgen_step.py")
        self._process = subprocess.Popen(
            [python, str(script), str(path.resolve())] + [json.dumps(settings)],
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

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()

    def __call__(self) -> float:
        """Seconds of a cycle."""
        self._process.stdin.write("1\n")
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


def network_of(name: str, sizes: dict[str, int]) -> Network:
    """The DiT of the peer."""
    return networks.dit(
        (sizes["side"], sizes["side"], sizes["channels"]),
        patch=sizes["patch"],
        width=sizes["width"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        num_classes=sizes["classes"],
        second_time=name == "mean_flow",
        qk_norm=False,
    )


def ours(name: str, network: Network, sizes: dict[str, int]) -> Side:
    """Our cycle, by the clock on the wall."""
    shape = (sizes["side"], sizes["side"], sizes["channels"])
    return side.ours(
        method_of(name, sizes),
        network,
        side.data(shape, sizes["classes"], sizes["batch"]),
        clock=time.perf_counter,
        optimizer="adamw",
        lr=1e-4,
        ema=None,
        clip=None,
    )


def compare(
    name: str, python: str, path: pathlib.Path, scale: Scale, sizes: dict[str, int]
) -> list[Result]:
    """The ratios of one method: of seconds, and of operations."""
    network = network_of(name, sizes)
    mine = ours(name, network, sizes)
    with Process(python, path, name, sizes) as peer:
        pairs = measure.interleaved(mine.block, peer, scale.pairs, warm=1)
    found = measure.ratio(
        f"{name} cycle",
        f"ours / FastGen {PEER.commit[:7]} (torch {peer.told['torch']})",
        pairs,
        limit=LIMIT,
        goal=GOAL,
    )
    leaves = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
    parameters = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    found["parameters"] = [parameters, peer.told["parameters"]]
    found["sizes"] = sizes
    operations = mine.flops / peer.told["flops"]
    return [
        found,
        {
            "name": f"{name} operations",
            "what": "matrix products of a cycle, ours / FastGen",
            "value": operations,
            "limit": 1.05,
            "goal": 1.0,
            "passed": operations <= 1.05,
            "flops": [mine.flops, peer.told["flops"]],
        },
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peer", help="folder with the official code")
    parser.add_argument("--peer-python", required=True, help="Python that runs it")
    parser.add_argument("--methods", default=",".join(METHODS))
    for name, size in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    given, rest = parser.parse_known_args(arguments)
    sizes = {name: getattr(given, name) for name in SIZES}
    folder = PEER.folder(given.peer)

    def run(scale: Scale) -> list[Result]:
        return [
            result
            for name in given.methods.split(",")
            for result in compare(name, given.peer_python, folder, scale, sizes)
        ]

    return measure.main(run, "peers.fastgen", __doc__, rest)


if __name__ == "__main__":
    sys.exit(main())
