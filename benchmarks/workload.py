"""What is measured: the experiment cards on the digits, and the trainer in blocks."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Scale
from distilljax import cards
from distilljax.core.binding import Network
from distilljax.core.method import Method, batches
from distilljax.data import pipeline
from distilljax.training import Hooks, TrainConfig, View, train
from distilljax.training.roles import Setup, make_setup
from distilljax.training.state import TrainState, create_frozen, create_state

CARDS = pathlib.Path(__file__).parent.parent / "configs" / "digits"
SMALL = {"width": 16, "hidden": 16, "blocks": 1, "embedding": 16}


class Work(NamedTuple):
    """An experiment card with parameters.

    Attributes:
      method: the method, with the phases of its last stage only.
      networks: by key.
      source: the digits.
      config: how it is trained; long enough never to end.
      params: the teacher's by role; the student's where there is no teacher.
    """

    method: Method
    networks: Mapping[str, Network]
    source: Any
    config: TrainConfig
    params: dict[str, Any]


def filled(network: Network, seed: int = 0) -> Any:
    """Random parameters without a fresh network's zeros, made without a program."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        spread = 0.02 if len(leaf.shape) < 2 else leaf.shape[0] ** -0.5
        return jnp.asarray(spread * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(network.init, jax.random.key(0)))


def card(name: str, scale: Scale, **options: Any) -> Work:
    """A card of ``configs/digits``.

    Args:
      name: file of the card.
      scale: a tiny one shrinks network and batch.
      **options: options of the method to change.
    """
    plain = cards.load(CARDS / f"{name}.py").to_dict()
    plain["method"].update(options)
    plain["cycles"] = 10**6
    plain["checkpoint"]["every"] = 0
    if scale.tiny:
        plain["batch_size"] = 208
        for spec in plain["networks"].values():
            spec.update(SMALL if spec["name"] == "mlp" else {})
    found = cards.expand(plain)
    first = "teacher" if "teacher" in found.method.roles else "student"
    params = {first: filled(found.networks["backbone"])}
    method = found.method._replace(stages=())
    return Work(method, found.networks, found.source, found.train, params)


def first_batch(work: Work) -> dict[str, jax.Array]:
    """The first batch of a cycle ``[n, 1, B, ...]``, on the device."""
    stream = pipeline.batches(
        work.source,
        batch_size=work.config.batch_size,
        stack=batches(work.method.phases),
        seed=work.config.seed,
        prefetch=0,
    )
    return jax.device_put(next(stream))


class Start(NamedTuple):
    """What a cycle is called with; every start owns its state."""

    setup: Setup
    state: TrainState
    frozen: dict[str, Any]
    batch: dict[str, jax.Array]


def start(work: Work) -> Start:
    """Setup, first state, frozen parameters and batch of a card."""
    batch = first_batch(work)
    setup = make_setup(
        work.method,
        work.networks,
        work.config,
        work.source.sample_shape,
        batch=jax.eval_shape(lambda: batch),
    )
    frozen = create_frozen(setup, work.params)
    return Start(setup, create_state(setup, work.params), frozen, batch)


class Constant:
    """Iterator over one batch on the device: a feed that costs nothing."""

    def __init__(self, batch: Mapping[str, Any]):
        self._batch = dict(batch)

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, Any]:
        return self._batch

    def get_state(self) -> dict[str, Any]:
        """Nothing: every position is the same."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Does nothing."""


class _Ended(Exception):
    pass


class Trainer:
    """`training.train` with feed, late metrics and records, held between blocks.

    It runs in its own thread and stops in its sample hook, so that blocks of the one
    real loop can take turns with another contender. Call it for the seconds of a block.
    """

    def __init__(self, work: Work, steps: int, data: Any = None):
        """Prepares a run in blocks of ``steps`` cycles; default on the source."""
        self._work = work
        self._config = dataclasses.replace(work.config, sample_every=steps)
        self._data = work.source if data is None else data
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._ended, self._error = False, None
        self._seconds = self._began = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Trainer:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended = True
        self._go.release()
        self._thread.join()

    def __call__(self) -> float:
        """Seconds of the next block."""
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._seconds

    def _wait(self) -> None:
        self._go.acquire()
        if self._ended:
            raise _Ended
        self._began = time.perf_counter()

    def _hook(self, view: View) -> None:
        jax.block_until_ready(view.state)
        self._seconds = time.perf_counter() - self._began
        self._done.release()
        self._wait()

    def _run(self) -> None:
        work = self._work
        try:
            self._wait()
            with tempfile.TemporaryDirectory() as folder:
                train(
                    work.method,
                    work.networks,
                    work.params,
                    self._data,
                    self._config,
                    folder,
                    hooks=Hooks(sample=self._hook),
                    sample_shape=work.source.sample_shape,
                    progress=False,
                )
        except _Ended:
            pass
        except BaseException as error:
            self._error = error
            self._done.release()


def times_like(x: jax.Array, t: float) -> jax.Array:
    """Times ``[B]`` of a batch."""
    return jnp.full(x.shape[:1], t, jnp.float32)
