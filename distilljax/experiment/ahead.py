"""Training cycles compiled for accelerators that are not there.

The `libtpu` package compiles for named topologies on any Linux machine, so that a card
can be shown to fit its chips before anybody waits for them:

    distilljax compile --config=configs/cifar/scm.py --topology=v5e:4x4
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import math
import os
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distilljax.core.binding import Network
from distilljax.core.method import Method, batches
from distilljax.experiment import cards
from distilljax.runtime.errors import unknown
from distilljax.training.collectives import collectives, counts
from distilljax.training.config import TrainConfig
from distilljax.training.cost import matmul_flops
from distilljax.training.cycle import build_cycle, run_cycle
from distilljax.training.placement import ROWS, make_mesh, sharding
from distilljax.training.roles import Setup, make_setup
from distilljax.training.state import abstract, frozen_roles, held, parameter_shapes

# Memory of a chip in GiB, as its vendor states it.
MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 192}
QUICK = {"exec_time_optimization_effort": -1.0}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiled cycle needs of every chip.

    Attributes:
      method: name of the method.
      topology: name of the chips, for example ``v5e:4x4``.
      chips: their number.
      arguments: bytes of state, frozen parameters and batch.
      temporaries: bytes of everything in between.
      limit: bytes that a chip has.
      flops: of matrix products of a cycle over all chips, loops counted as often as
        they run.
      collectives: how often the program holds each kind; those inside a loop once.
      seconds: that compilation took.
    """

    method: str
    topology: str
    chips: int
    arguments: int
    temporaries: int
    limit: int
    flops: int
    collectives: Mapping[str, int]
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether arguments and temporaries fit the memory of a chip."""
        return self.arguments + self.temporaries <= self.limit

    def __str__(self) -> str:
        gib = 2.0**30
        found = ", ".join(f"{n} {c}" for n, c in sorted(self.collectives.items()))
        return (
            f"{self.method} on {self.topology} ({self.chips} chips): "
            f"{self.arguments / gib:.2f} GiB state and batch + "
            f"{self.temporaries / gib:.2f} GiB temporaries of {self.limit / gib:.0f} "
            f"GiB a chip, {'fits' if self.fits else 'DOES NOT FIT'}; "
            f"{self.flops / 1e12:.2f} TFLOP a cycle; {found or 'no collectives'}; "
            f"compiled in {self.seconds:.0f} s"
        )


def topology_mesh(topology: str, shape: Mapping[str, int] | None = None) -> Mesh:
    """The mesh of a config over all chips of a topology that is not there.

    Args:
      topology: ``<chip>:<a>x<b>[x<c>]``: ``v5e:4x4``, ``v6e:4x4``, ``v5p:2x2x2``.
      shape: devices by axis of the config; what it lacks or has too many of is mended
        along ``data``, then ``fsdp``.

    Raises:
      ValueError: for an unknown chip.
      ModuleNotFoundError: without the package `libtpu`.
    """
    chip = topology.partition(":")[0]
    if chip not in MEMORY:
        raise ValueError(unknown("chip", chip, MEMORY))
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "compiling for TPUs needs the package libtpu of this jax's version: "
            "pip install 'jax[tpu]', or --target=FOLDER and FOLDER on PYTHONPATH"
        )
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    left, sizes = len(found.devices), {}
    for axis in ("tensor", "fsdp"):
        sizes[axis] = math.gcd((shape or {}).get(axis, 1), left)
        left //= sizes[axis]
    return make_mesh({**sizes, "data": left}, found.devices)


def _shapes(setup: Setup, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Shapes with shardings of ``(state, frozen, batch)`` of the last phases."""
    assert setup.mesh is not None
    given, over = parameter_shapes(setup), sharding(setup.mesh, None, None, ROWS)
    frozen = {
        name: jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=place
            ),
            jax.eval_shape(functools.partial(held, setup), given[name]),
            setup.shardings(name, given[name]),
        )
        for name in frozen_roles(setup)
    }
    size = setup.config.batch_size // setup.stacked
    lead = (batches(setup.method.phases), setup.stacked, size)
    fields = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (*lead, *leaf.shape), leaf.dtype, sharding=over
        ),
        dict(batch),
    )
    return abstract(setup, given), frozen, fields


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A training cycle, lowered for chips that need not be there.

    Attributes:
      setup: what the programs of the run share.
      arguments: shapes of state, frozen parameters and batch.
      topology: name of the chips.
      lowered: the program before compilation.
      options: of the compiler.
    """

    setup: Setup
    arguments: tuple[Any, Any, Any]
    topology: str
    lowered: Any
    options: Mapping[str, Any] | None

    @property
    def digest(self) -> str:
        """Equal for equal programs, chips and options of the compiler."""
        parts = [str(self.options), self.topology, self.lowered.as_text()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def compiler(self) -> str:
        """Version of the compiler."""
        return metadata.version("libtpu")

    def compile(self) -> Compiled:
        """What the program needs of every chip."""
        began = time.perf_counter()
        compiled = self.lowered.compile(compiler_options=self.options)
        seconds = time.perf_counter() - began
        memory, setup = compiled.memory_analysis(), self.setup
        assert setup.mesh is not None
        local = functools.partial(run_cycle, setup, setup.method.phases)
        return Compiled(
            method=setup.method.name,
            topology=self.topology,
            chips=setup.mesh.size,
            arguments=memory.argument_size_in_bytes,
            temporaries=memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes,
            limit=MEMORY[self.topology.partition(":")[0]] * 2**30,
            flops=int(matmul_flops(local, *self.arguments)),
            collectives=counts(collectives(compiled)),
            seconds=seconds,
        )


def lower_ahead(
    method: Method,
    networks: Mapping[str, Network],
    config: TrainConfig,
    *,
    sample: Mapping[str, Any],
    topology: str = "v5e:4x4",
    quick: bool = False,
) -> Program:
    """Lowers the cycle of a method for chips that need not be there.

    Args:
      method: the method; its own phases, not those of a stage.
      networks: by key.
      config: of the run; its mesh is stretched over all chips, see `topology_mesh`.
      sample: shapes of one sample by field, ``jax.ShapeDtypeStruct``, ``x0`` among
        them.
      topology: see `topology_mesh`.
      quick: lets the compiler try less hard, which takes a fraction of the time and
        gives about the same memory.

    Returns:
      The program; its ``compile()`` says what it needs.

    Raises:
      ValueError: for an unknown chip, or a batch that the chips do not divide.
      ModuleNotFoundError: without the package `libtpu`.
    """
    mesh = topology_mesh(topology, config.mesh)
    config = dataclasses.replace(config, mesh=dict(mesh.shape))
    setup = make_setup(method, networks, config, sample["x0"].shape, mesh)
    arguments = _shapes(setup, sample)
    lowered = build_cycle(setup, method.phases).lower(*arguments)
    return Program(setup, arguments, topology, lowered, QUICK if quick else None)


def lower_card(card: Any, topology: str = "v5e:4x4", *, quick: bool = False) -> Program:
    """`lower_ahead` of a card; its data need not be there."""
    outline = cards.outline(card)
    found = cards.expand(card, source=outline)
    return lower_ahead(
        found.method,
        found.networks,
        found.train,
        sample=sample_of(outline, found.method.batch & {"eps", "y"}),
        topology=topology,
        quick=quick,
    )


def sample_of(
    source: Any, fields: Iterable[str] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one sample of a source of images and conditions, see `lower_ahead`.

    Args:
      source: with ``sample_shape`` and ``num_classes``, None for no labels; maybe with
        ``cond_features`` of embeddings, and ``augment_features`` of an augmentation.
      fields: further fields of the samples' shape (``eps`` of a pair).
    """
    like = jax.ShapeDtypeStruct(tuple(source.sample_shape), jnp.float32)
    sample = {name: like for name in ("x0", *fields)}
    features = getattr(source, "cond_features", None)
    if features is not None:
        sample["cond"] = jax.ShapeDtypeStruct((features,), jnp.float32)
    elif source.num_classes is not None:
        sample["cond"] = jax.ShapeDtypeStruct((), jnp.int32)
    changes = getattr(source, "augment_features", None)
    if changes is not None:
        told = {"augment": jax.ShapeDtypeStruct((changes,), jnp.float32)}
        if "cond" in sample:
            told["label" if features is None else "embedding"] = sample["cond"]
        sample["cond"] = told
    return sample
