"""One side of a comparison, ours and theirs: its program, what it costs, a block."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Block, Result, Scale
from benchmarks.workload import filled
from distilljax import networks
from distilljax.method import Method
from distilljax.networks.embeddings import Frequencies
from distilljax.training import TrainConfig, build_cycle
from distilljax.training.cost import matmul_flops
from distilljax.training.roles import make_setup
from distilljax.training.state import create_frozen, create_state

Array = jax.Array
SHAPE, CLASSES, BATCH = (32, 32, 4), 1000, 8


class Peer(NamedTuple):
    """Where the official code of a paper is.

    Attributes:
      repository: on GitHub.
      commit: that was measured.
      file: one of its files, by which the folder is known.
      module: name of the benchmark.
    """

    repository: str
    commit: str
    file: str
    module: str

    def folder(self, path: str | None) -> pathlib.Path:
        """The folder with the code.

        Raises:
          ValueError: if it is not given or holds something else.
        """
        if path is not None and (pathlib.Path(path) / self.file).is_file():
            return pathlib.Path(path)
        came = "no folder" if path is None else f"{path}, which has no {self.file}"
        raise ValueError(
            f"benchmarks.peers.{self.module} wants the official code, got {came}; run "
            f"git clone https://github.com/{self.repository} FOLDER && git -C FOLDER "
            f"checkout {self.commit}, and pass --peer=FOLDER"
        )


@contextlib.contextmanager
def importable(folder: pathlib.Path) -> Iterator[None]:
    """Lets modules of a folder be imported inside the block, and forgets them."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(str(folder)):
                del sys.modules[name]


class Side(NamedTuple):
    """A compiled update.

    Attributes:
      forwards: matrix products of an update over those of a forward pass of the batch.
      temporaries: bytes that the compiled program allocates beside state and batch.
      block: runs an update and returns the processor seconds of all threads.
    """

    forwards: float
    temporaries: int
    block: Block


def side(
    step: Callable[..., Any], forward: Callable[..., Array], state: Any, *rest: Any
) -> Side:
    """Compiles an update ``(state, *rest) -> (state, ...)``, the state donated.

    Args:
      step: the update, jitted with its first argument donated.
      forward: ``state -> output`` of one forward pass of the batch.
      state: first state; it is consumed.
      *rest: what every update gets.
    """
    flops = matmul_flops(step, state, *rest) / matmul_flops(forward, state)
    program = step.lower(state, *rest).compile()
    held = [state]

    def block() -> float:
        began = time.process_time()
        held[0] = program(held[0], *rest)[0]
        jax.block_until_ready(held[0])
        return time.process_time() - began

    size = program.memory_analysis().temp_size_in_bytes
    return Side(flops, size, block)


def data() -> dict[str, Array]:
    """A batch of random latents and labels."""
    rng = np.random.default_rng(0)
    return {
        "x0": jnp.asarray(rng.standard_normal((BATCH, *SHAPE)), jnp.float32),
        "cond": jnp.asarray(rng.integers(0, CLASSES, BATCH), jnp.int32),
    }


def random_like(shapes: Any) -> Any:
    """Small random parameters, made without a program."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape), leaf.dtype),
        shapes,
    )


def ours(method: Method, patch: int, scale: Scale, **student: Any) -> Side:
    """The cycle of a method on the same DiT-S.

    Args:
      method: with a student, and what follows it.
      patch: side of a patch.
      scale: a tiny one shrinks the network.
      **student: how the student is trained, see `RoleConfig`.
    """
    small = {"width": 16, "depth": 2, "heads": 2} if scale.tiny else {"size": "S"}
    network = networks.dit(
        SHAPE,
        **small,
        patch=patch,
        num_classes=CLASSES,
        second_time=True,
        qk_norm=False,
        frequencies=Frequencies(count=128),
    )
    batch = jax.tree.map(lambda x: x[None, None], data())
    config = TrainConfig.of({"batch_size": BATCH, "student": student})
    setup = make_setup(
        method,
        {"backbone": network},
        config,
        SHAPE,
        batch=jax.eval_shape(lambda: batch),
    )
    params = {"student": filled(network)}
    frozen = create_frozen(setup, params)
    state = create_state(setup, params)

    def forward(state: Any) -> Array:
        t = jnp.full((BATCH,), 0.5)
        x, cond = batch["x0"][0, 0], batch["cond"][0, 0]
        return network.apply(state.params["student"], x, t, cond, 0.5 * t)

    return side(build_cycle(setup, method.phases), forward, state, frozen, batch)


def compare(
    name: str,
    mine: Side,
    theirs: Side,
    scale: Scale,
    *,
    forwards: float,
    seconds: tuple[float, float],
    memory: tuple[float, float] | None = None,
) -> list[Result]:
    """Evaluations, processor time and temporaries of both sides.

    Args:
      name: how the table calls it.
      mine: our side.
      theirs: the official one.
      scale: how many pairs.
      forwards: largest number of evaluations an update.
      seconds: ``(limit, goal)`` of the ratio of processor times.
      memory: ``(limit, goal)`` of the ratio of temporaries; None does not compare.
    """
    results: list[Result] = [
        {
            "name": f"{name}: evaluations",
            "what": "matrix products of an update over those of a forward pass",
            "value": mine.forwards,
            "official": theirs.forwards,
            "limit": forwards,
            "goal": forwards,
            "passed": mine.forwards <= forwards * 1.001,
        }
    ]
    if memory is not None:
        value = mine.temporaries / theirs.temporaries
        results.append(
            {
                "name": f"{name}: temporaries",
                "what": "bytes beside state and batch over the official's",
                "value": value,
                "megabytes": [s.temporaries / 2**20 for s in (mine, theirs)],
                "limit": memory[0],
                "goal": memory[1],
                "passed": value <= memory[0],
            }
        )
    pairs = measure.interleaved(mine.block, theirs.block, scale.pairs)
    limit, goal = seconds
    what = "processor seconds of an update over the official's"
    results.append(
        measure.ratio(f"{name}: processor time", what, pairs, limit=limit, goal=goal)
    )
    return results


def main(
    run: Callable[[Scale, str | None], list[Result]],
    name: str,
    about: str | None,
    arguments: Sequence[str] | None = None,
) -> int:
    """The command line of a comparison, see `measure.main`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peer", help="folder with the official code")
    given, rest = parser.parse_known_args(arguments)
    return measure.main(lambda s: run(s, given.peer), f"peers.{name}", about, rest)
