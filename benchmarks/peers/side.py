"""One side of a comparison, ours and theirs: its program, what it costs, a block."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Block, Result, Scale
from benchmarks.workload import filled
from distilljax import networks
from distilljax.core.binding import Network
from distilljax.core.method import Method, batches
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
            found = sys.modules[name]
            # A folder without an __init__ has a path only.
            places = [getattr(found, "__file__", None), *getattr(found, "__path__", ())]
            if any(str(place).startswith(str(folder)) for place in places):
                del sys.modules[name]


def older(module: Any) -> None:
    """Gives a module of official code the keywords of `jnp.clip` that jax has lost."""

    def clip(x: Array, lower: Any = None, upper: Any = None, **old: Any) -> Array:
        return jnp.clip(x, old.get("a_min", lower), old.get("a_max", upper))

    module.jnp = types.SimpleNamespace(**{**vars(jnp), "clip": clip})


class Side(NamedTuple):
    """A compiled update.

    Attributes:
      flops: operations of the matrix products of an update.
      forwards: the same over those of a forward pass of the batch.
      temporaries: bytes that the compiled program allocates beside state and batch.
      block: runs an update and returns its seconds.
    """

    flops: float
    forwards: float
    temporaries: int
    block: Block


def side(
    step: Callable[..., Any],
    forward: Callable[..., Array],
    state: Any,
    *rest: Any,
    clock: Callable[[], float] = time.process_time,
) -> Side:
    """Compiles an update ``(state, *rest) -> (state, ...)``, the state donated.

    Args:
      step: the update, jitted with its first argument donated.
      forward: ``state -> output`` of one forward pass of the batch.
      state: first state; it is consumed.
      *rest: what every update gets.
      clock: what seconds are; default those of the processor, of all threads.
    """
    flops = matmul_flops(step, state, *rest)
    forwards = flops / matmul_flops(forward, state)
    program = step.lower(state, *rest).compile()
    held = [state]

    def block() -> float:
        began = clock()
        held[0] = program(held[0], *rest)[0]
        jax.block_until_ready(held[0])
        return clock() - began

    size = program.memory_analysis().temp_size_in_bytes
    return Side(flops, forwards, size, block)


def data(
    shape: tuple[int, ...] = SHAPE, classes: int = CLASSES, batch: int = BATCH
) -> dict[str, Array]:
    """A batch of random latents and labels."""
    rng = np.random.default_rng(0)
    return {
        "x0": jnp.asarray(rng.standard_normal((batch, *shape)), jnp.float32),
        "cond": jnp.asarray(rng.integers(0, classes, batch), jnp.int32),
    }


def random_like(shapes: Any) -> Any:
    """Small random parameters, made without a program."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape), leaf.dtype),
        shapes,
    )


def dit_s(patch: int, scale: Scale, *, second_time: bool) -> Network:
    """The DiT-S of the official codes, which do not normalise queries and keys.

    Args:
      patch: side of a patch.
      scale: a tiny one shrinks it.
      second_time: whether it takes a second time.
    """
    small = {"width": 16, "depth": 2, "heads": 2} if scale.tiny else {"size": "S"}
    return networks.dit(
        SHAPE,
        **small,
        patch=patch,
        num_classes=CLASSES,
        second_time=second_time,
        qk_norm=False,
        frequencies=Frequencies(count=128),
    )


def ours(
    method: Method,
    network: Network,
    batch: dict[str, Array] | None = None,
    *,
    clock: Callable[[], float] = time.process_time,
    **training: Any,
) -> Side:
    """The cycle of a method.

    Args:
      method: with a student, and what follows it.
      network: of all its roles.
      batch: what every update of the cycle gets; default `data`.
      clock: see `side`.
      **training: how every role is trained, see `RoleConfig`.
    """
    given = data() if batch is None else batch
    count, size = batches(method.phases), len(given["x0"])
    repeated = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (count, 1, *x.shape)).copy(), given
    )
    config = TrainConfig.of(
        {"batch_size": size, "default": training}, roles=method.roles
    )
    setup = make_setup(
        method,
        {"backbone": network},
        config,
        given["x0"].shape[1:],
        batch=jax.eval_shape(lambda: repeated),
    )
    first = "teacher" if "teacher" in method.roles else "student"
    params = {first: filled(network)}
    frozen = create_frozen(setup, params)
    state = create_state(setup, params)

    def forward(state: Any) -> Array:
        t = jnp.full((size,), 0.5)
        second = 0.5 * t if "second_time" in network.capabilities else None
        params = state.params["student"]
        return network.apply(params, given["x0"], t, given["cond"], second)

    cycle = build_cycle(setup, method.phases)
    return side(cycle, forward, state, frozen, repeated, clock=clock)


def compare(
    name: str,
    mine: Side,
    theirs: Side,
    scale: Scale,
    *,
    forwards: float,
    seconds: tuple[float, float],
    memory: tuple[float, float] | None = None,
    alike: bool = True,
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
      alike: whether both train the same network by the same method. If not, seconds are
        divided by the operations of an update and bytes by those of a forward pass.
    """
    both = (mine, theirs)
    work = [1.0 if alike else s.flops for s in both]
    size = [1.0 if alike else s.flops / s.forwards for s in both]
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
        scaled = [s.temporaries / n for s, n in zip(both, size, strict=True)]
        value = scaled[0] / scaled[1]
        results.append(
            {
                "name": f"{name}: temporaries",
                "what": "bytes beside state and batch"
                + ("" if alike else ", for an operation of a forward pass,")
                + " over the official's",
                "value": value,
                "megabytes": [s.temporaries / 2**20 for s in both],
                "limit": memory[0],
                "goal": memory[1],
                "passed": value <= memory[0],
            }
        )
    pairs = measure.interleaved(mine.block, theirs.block, scale.pairs)
    each = [[a / work[0], b / work[1]] for a, b in pairs]
    limit, goal = seconds
    what = f"processor seconds of an {'update' if alike else 'operation'}"
    what += " over the official's"
    found = measure.ratio(f"{name}: processor time", what, each, limit=limit, goal=goal)
    # Of an update, whatever the ratio is of.
    found["milliseconds"] = (1e3 * np.median(np.asarray(pairs), axis=0)).tolist()
    results.append(found)
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
