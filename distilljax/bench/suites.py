"""What a suite is: one teacher, one network, one judge, and how methods run on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.core.binding import Network
from distilljax.core.method import Method
from distilljax.methods import CATALOGUE, build
from distilljax.runtime.errors import unknown

Array = jax.Array
STEPS = (1, 2, 4)
# A phase is one of so many samples; half of what the digits cards take is a multiple of
# the slots of every method.
BATCH = 208
# Compositions that, as far as we know, nobody published: methods of two kinds, of which
# one keeps what the other loses.
COMPOSED: dict[str, dict[str, float]] = {
    "mean_flow+sid": {},
    "shortcut+diff_instruct": {},
    "ayf_emd+dmd": {},
    "reflow+scm": {},
    "ctm+f_distill": {},
}


def no_reward() -> Network:
    """A reward that is the same for every sample."""

    def value(params, x, cond=None):
        return params["bias"] + 0.0 * x.reshape(len(x), -1)[:, 0]

    return Network(
        "no reward",
        None,
        lambda key: {"bias": jnp.zeros(())},
        functions={"value": value},
    )


class Entry(NamedTuple):
    """How a method runs on a suite.

    Attributes:
      options: cycles, network evaluations -> options of its factory. Schedules stretch
        with the cycles; evaluations matter to methods with a student for each.
      settings: cycles -> training settings by role, see `training.TrainConfig`.
      nfes: network evaluations at which its student is judged.
      each: whether every one of ``nfes`` has a training of its own, each with the whole
        budget: methods whose student is made for one number of steps.
      trips: mean length of a loop of drawn length, for the count of evaluations.
      note: what a reader of its row should know.
    """

    options: Callable[[int, int], Mapping[str, Any]]
    settings: Callable[[int], Mapping[str, Mapping[str, Any]]]
    nfes: tuple[int, ...] = STEPS
    each: bool = False
    trips: float | None = None
    note: str = ""

    def method(self, name: str, cycles: int, nfe: int) -> Method:
        """The method for a run of so many cycles."""
        return build(name, **self.options(cycles, nfe))


class Judge(Protocol):
    """Compares samples with the truth.

    Attributes:
      count: samples of a seed.
      labels: their labels ``[count]``, or None.
    """

    count: int
    labels: np.ndarray | None

    def statistics(self, x: np.ndarray) -> dict[str, Any]:
        """Numbers about samples ``[count, *sample_shape]`` of one seed."""
        ...

    def paired(self, x: np.ndarray, eps: np.ndarray) -> dict[str, Any]:
        """Numbers about samples and the noise that a flow took them from."""
        ...

    def probe(self, x: np.ndarray) -> float:
        """The headline number of a few samples, cheaply, while training."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Suite:
    """One problem for all methods.

    Attributes:
      name: ``mixture`` or ``digits``.
      settings: what determines it, as JSON values.
      sample_shape: shape of a sample.
      headline: the number that rows are ranked by, lower is better.
      batch_size: samples of an update.
      budget: network evaluations of a training, by default.
      start: how the network is trained that students start from, by flow matching.
      pretraining: network evaluations of that.
      entries: by method.
      missing: methods that it cannot feed, and why.
      networks: method -> networks by key.
      counted: the same with networks whose every evaluation is counted.
      given: method, parameters of the start -> parameters given by role.
      backbone: the network that students start from.
      draw: ``(key, leading shape) -> batch`` of data.
      judge: see `Judge`.
      original: samples in the network's units -> samples as written and judged.
      floor: ``(parameters of the start, seed) -> samples`` that no student can beat but
        by chance.
      floor_name: what they are.
      floor_draws: how many sets of them are judged.
      teacher: noise ``[count, *sample_shape]`` -> where the exact teacher takes it, for
        students that follow it from the same noise; None where the floor is that.
    """

    name: str
    settings: Mapping[str, Any]
    sample_shape: tuple[int, ...]
    headline: str
    batch_size: int
    budget: int
    start: Entry
    pretraining: int
    entries: Mapping[str, Entry]
    missing: Mapping[str, str]
    networks: Callable[[Method], Mapping[str, Network]]
    counted: Callable[[Method], Mapping[str, Network]]
    given: Callable[[Method, Any], Mapping[str, Any]]
    backbone: Network
    draw: Callable[[Array, tuple[int, ...]], Mapping[str, Array]]
    judge: Judge
    original: Callable[[np.ndarray], np.ndarray]
    floor: Callable[[Any, int], np.ndarray]
    floor_name: str
    floor_draws: int = 3
    teacher: Callable[[Array], np.ndarray] | None = None

    def chosen(self, methods: str | Sequence[str] | None) -> list[str]:
        """Names of the methods asked for, in the order of the catalogue.

        Args:
          methods: names, or joined by commas; None or ``all`` for every method,
            ``compositions`` for those of `COMPOSED`. ``dmd2+mean_flow`` is one of any
            two.

        Raises:
          ValueError: for a name that is no method, or one that the suite cannot feed.
        """
        if methods is None or methods == "all":
            return [name for name in CATALOGUE if name in self.entries]
        if methods == "compositions":
            return list(COMPOSED)
        asked = methods.split(",") if isinstance(methods, str) else list(methods)
        for name in (part for whole in asked for part in whole.split("+")):
            if name in self.missing:
                raise ValueError(
                    f"suite {self.name!r} has no {name!r}: {self.missing[name]}"
                )
            if name not in self.entries:
                raise ValueError(unknown("method", name, self.entries))
        alone = [name for name in CATALOGUE if name in asked]
        return alone + [name for name in asked if "+" in name]

    def entry(self, name: str) -> Entry:
        """How a method runs, or a composition: its methods as they run alone."""
        if "+" not in name:
            return self.entries[name]
        entries = {part: self.entries[part] for part in name.split("+")}
        return composed_entry(entries, COMPOSED.get(name, {}))


def composed_entry(entries: Mapping[str, Entry], weights: Mapping[str, float]) -> Entry:
    """The entry of a composition, out of those of its methods.

    Options, and the settings of the roles that a method brings, are those that it has
    alone; the student is trained as the first one's is.

    Args:
      entries: by method.
      weights: of their gradients; 1 where there is none.
    """

    def options(cycles: int, nfe: int) -> dict[str, Any]:
        own = {n: dict(entry.options(cycles, nfe)) for n, entry in entries.items()}
        return {**own, "weights": dict(weights)}

    def settings(cycles: int) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        # The first one last, whose sections hold where several have one of a name.
        for name, entry in reversed(entries.items()):
            own = entry.settings(cycles)
            found |= {**own, **{f"{name}_{role}": own[role] for role in own}}
        return found

    known = list(entries.values())
    trips = [entry.trips for entry in known if entry.trips is not None]
    if len(trips) > 1:
        raise ValueError(
            f"{'+'.join(entries)}: loops of drawn length in both are not counted"
        )
    return Entry(
        options,
        settings,
        nfes=tuple(n for n in STEPS if all(n in entry.nfes for entry in known)),
        each=any(entry.each for entry in known),
        trips=trips[0] if trips else None,
        note="; ".join(f"weight of {name} {w:g}" for name, w in weights.items()),
    )
