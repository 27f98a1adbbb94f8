"""Trains all seeds of a method in one program, until a budget is spent.

The cycle is the trainer's (`training.cycle.run_cycle`), mapped over the seeds; data are
drawn inside the program, and a call runs many cycles, so that small networks are not
slowed down by the host.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.bench.suites import Entry, Suite
from distilljax.core.binding import Network
from distilljax.core.method import Method, Phase, batches
from distilljax.sampling import generation
from distilljax.training.config import TrainConfig
from distilljax.training.cost import run_evaluations
from distilljax.training.cycle import run_cycle
from distilljax.training.roles import Setup, make_setup, network_of
from distilljax.training.state import (
    TrainState,
    create_frozen,
    first_state,
    parameter_shapes,
)

Array = jax.Array
_NOMINAL = 1000
# Parts of a training between which progress is shown.
_STOPS = 20
# Seeds of training, and of sampling, apart from each other.
_DATA, _NOISE = 2**20, 2**21


class Spent(NamedTuple):
    """What a training cost.

    Attributes:
      cycles: training cycles.
      evaluations: network evaluations of one seed.
      seconds: training of all seeds, without compilation.
      compile_seconds: compilation.
      peak_bytes: arguments, results and temporaries of the training program.
      networks: parameter sets as large as the student's, averages included.
      parameters: numbers held in them and in the optimizers, of one seed.
      skipped: updates of the student that were not finite, over all seeds.
    """

    cycles: int
    evaluations: float
    seconds: float
    compile_seconds: float
    peak_bytes: int
    networks: int
    parameters: int
    skipped: int


class Trained(NamedTuple):
    """Students of all seeds.

    Attributes:
      method: the method.
      network: network of the student.
      params: its parameters, seeds first.
      spent: what it cost.
      history: ``[share of the budget, headline by seed]`` while training.
    """

    method: Method
    network: Network
    params: Any
    spent: Spent
    history: list[tuple[float, list[float]]]


def setup_of(
    suite: Suite,
    method: Method,
    networks: Mapping[str, Network],
    entry: Entry,
    cycles: int,
) -> Setup:
    """Roles joined with a suite's networks."""
    settings = {
        role: dict(section)
        for role, section in entry.settings(cycles).items()
        if role in method.trained
    }
    config = TrainConfig.of(
        {"cycles": cycles, "batch_size": suite.batch_size, **settings},
        roles=method.roles,
    )
    batch = jax.eval_shape(
        lambda: dict(suite.draw(jax.random.key(0), (1, 1, suite.batch_size)))
    )
    return make_setup(method, networks, config, suite.sample_shape, None, batch)


def cycles_for(suite: Suite, name: str, entry: Entry, budget: float, nfe: int) -> int:
    """Cycles of a method that a budget of network evaluations pays for, at least 1.

    A cycle's cost does not depend on the length of the run, except for methods with
    stages, which keep their shares of it.
    """
    method = entry.method(name, _NOMINAL, nfe)
    setup = setup_of(suite, method, suite.counted(method), entry, _NOMINAL)
    return max(1, int(_NOMINAL * budget / run_evaluations(setup, trips=entry.trips)))


def train(
    suite: Suite,
    name: str,
    entry: Entry,
    start: Any,
    *,
    budget: float,
    nfe: int = 1,
    seeds: Sequence[int] = (0, 1, 2),
    probes: int = 4,
    progress: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains a method from one start under several seeds.

    Args:
      suite: the problem.
      name: registry id.
      entry: how the method runs on it.
      start: parameters of the network that students start from; None for a network
        that starts at random.
      budget: network evaluations of one seed.
      nfe: evaluations for which the student is made, see `Entry.each`.
      seeds: of data, drawn levels, noise and initialised parameters.
      probes: how often the student is judged while it trains.
      progress: called with the share of the budget that is spent.

    Returns:
      The students, the evaluation EMA where one is kept.
    """
    cycles = cycles_for(suite, name, entry, budget, nfe)
    method = entry.method(name, cycles, nfe)
    built = suite.networks(method)
    setup = setup_of(suite, method, built, entry, cycles)
    given = {} if start is None else dict(suite.given(method, start))
    for role, record in method.roles.items():
        if record.init == "given" and role != "teacher":
            given[role] = setup.networks[role].init(jax.random.key(0))
    frozen = create_frozen(setup, given)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    states = _first(setup, keys, given)
    role = method.sampling.role
    network = network_of(method.roles, role, built)
    judged = Sampler(suite, method, network, min(entry.nfes) if not entry.each else nfe)

    history, seconds, compiling, peak, done = [], 0.0, 0.0, 0, 0
    marks = {round(cycles * (i + 1) / probes) for i in range(probes)}
    stops = marks | {round(cycles * (i + 1) / _STOPS) for i in range(_STOPS)}
    for until, phases in _stages(method, cycles):
        began = time.monotonic()
        arguments = (states, frozen, keys, jnp.int32(0), jnp.int32(0))
        program = _program(setup, phases, suite).lower(*arguments).compile()
        compiling += time.monotonic() - began
        peak = max(peak, _bytes(program))
        for mark in sorted({*(m for m in stops if done < m < until), until}):
            began = time.monotonic()
            states = jax.block_until_ready(
                program(states, frozen, keys, jnp.int32(done), jnp.int32(mark))
            )
            seconds += time.monotonic() - began
            done = mark
            progress(done / cycles)
            if mark in marks:
                x = judged(_student(states, role), seeds)
                values = [suite.judge.probe(one) for one in x]
                history.append((done / cycles, values))
    skipped = states.counters.get(role, {}).get("skipped", jnp.zeros(()))
    counted = setup_of(suite, method, suite.counted(method), entry, cycles)
    spent = Spent(
        cycles=cycles,
        evaluations=run_evaluations(counted, trips=entry.trips),
        seconds=seconds,
        compile_seconds=compiling,
        peak_bytes=peak,
        networks=_networks(setup, states),
        parameters=_size((states.params, states.opt, states.ema)) // len(seeds)
        + _size(frozen),
        skipped=int(jnp.sum(skipped)),
    )
    return Trained(method, network, _student(states, role), spent, history)


def _first(setup: Setup, keys: Array, given: Mapping[str, Any]) -> TrainState:
    one = functools.partial(first_state, setup)
    mapped = jax.vmap(one, in_axes=(0, None), out_axes=_AXES)
    return jax.jit(mapped)(keys, dict(given))


# Everything has the seeds first, except the number of the cycle: what is done now and
# then stays a branch.
_AXES = TrainState(params=0, opt=0, ema=0, memory=0, step=None, counters=0, key=0)  # type: ignore[arg-type]


def _stages(method: Method, cycles: int) -> list[tuple[int, tuple[Phase, ...]]]:
    out, start = [], 0
    for until, phases in (*method.stages, (cycles, method.phases)):
        if min(until, cycles) > start:
            start = min(until, cycles)
            out.append((start, phases))
    return out


def _program(setup: Setup, phases: tuple[Phase, ...], suite: Suite) -> Any:
    """Cycles ``first .. last - 1`` of one stage, for all seeds."""
    lead = (batches(phases), 1, suite.batch_size)
    cycle = jax.vmap(
        functools.partial(run_cycle, setup, phases),
        in_axes=(_AXES, None, 0),
        out_axes=(_AXES, 0),
    )

    def run(states, frozen, keys, first, last):
        def one(i, states):
            at = jax.vmap(lambda key: jax.random.fold_in(key, _DATA + i))(keys)
            batch = jax.vmap(lambda key: dict(suite.draw(key, lead)))(at)
            return cycle(states, frozen, batch)[0]

        return jax.lax.fori_loop(first, last, one, states)

    return jax.jit(run, donate_argnums=0)


def _bytes(program: Any) -> int:
    """What a compiled program holds at once; 0 where the backend does not say."""
    found = program.memory_analysis()
    if found is None:
        return 0
    return int(
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


def _size(tree: Any) -> int:
    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "size")]
    return int(sum(leaf.size for leaf in leaves))


def _networks(setup: Setup, states: TrainState) -> int:
    """Parameter sets of half the student's size or more."""
    shapes = parameter_shapes(setup)
    role = setup.method.sampling.role
    whole = _size(shapes[role]) if role in shapes else max(map(_size, shapes.values()))
    own = sum(2 * _size(tree) >= whole for tree in shapes.values())
    return own + sum(2 * _size(shapes[role]) >= whole for role in states.ema)


def _student(states: TrainState, role: str) -> Any:
    return states.ema.get(role, states.params[role])


class Sampler:
    """Draws the samples of all seeds at one number of evaluations, in one program."""

    def __init__(self, suite: Suite, method: Method, network: Network, nfe: int):
        self.suite, self.nfe = suite, nfe
        one = generation.student_sampler(method, network, nfe)
        self._run = jax.jit(jax.vmap(one, in_axes=(0, 0, None, 0)))

    def __call__(self, params: Any, seeds: Sequence[int]) -> np.ndarray:
        """Samples ``[seeds, count, *sample_shape]`` as they are written and judged.

        Raises:
          FloatingPointError: naming the seeds whose samples are not finite.
        """
        judge = self.suite.judge
        keys = jnp.stack([jax.random.key(_NOISE + seed) for seed in seeds])
        labels = None if judge.labels is None else jnp.asarray(judge.labels)
        x = self._run(params, self.noise(seeds), labels, keys)
        x = self.suite.original(np.asarray(x, np.float32))
        bad = [s for s, one in zip(seeds, x, strict=True) if not np.isfinite(one).all()]
        if bad:
            raise FloatingPointError(
                f"samples at {self.nfe} NFE are not finite under seeds {bad}"
            )
        return x

    def noise(self, seeds: Sequence[int]) -> Array:
        """``[seeds, count, *sample_shape]``, the same for all methods."""
        count, shape = self.suite.judge.count, self.suite.sample_shape
        return jnp.stack([sampling_noise(seed, count, shape) for seed in seeds])


def sampling_noise(seed: int, count: int, shape: tuple[int, ...]) -> Array:
    """The noise ``[count, *shape]`` from which samples of a seed are made."""
    return generation.initial_noise(_NOISE + seed, 0, count, shape)
