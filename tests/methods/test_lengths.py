"""Options that count cycles, found by their type."""

import dataclasses
import inspect
import re

import pytest

from distilljax import methods
from distilljax.diffusion.times import Cycles, Minimum, Product, Ramp, Switch
from distilljax.methods.curricula import DoublingSegments, RootSegments, Shrink
from distilljax.methods.lengths import counted, stretched, stretched_options

FACTORIES = {name: entry.factory for name, entry in methods.CATALOGUE.items()}


@pytest.mark.parametrize(
    ("schedule", "half"),
    [
        (Ramp(40, 0.1, 0.9), Ramp(20, 0.1, 0.9)),
        (Minimum(0.99, Ramp(10)), Minimum(0.99, Ramp(5))),
        (Product(2.0, Switch(8)), Product(2.0, Switch(4))),
        (RootSegments(300, 2, 30), RootSegments(150, 2, 30)),
        (DoublingSegments(300, 10, 40), DoublingSegments(150, 10, 40)),
        (Shrink(300, 4), Shrink(150, 4)),
        (({"a": Ramp(4)}, 7), ({"a": Ramp(2)}, 7)),
        (Ramp(1), Ramp(1)),
        (Ramp(0), Ramp(0)),
        (300, 300),
    ],
)
def test_every_schedule_follows_the_length_of_the_run(schedule, half):
    assert stretched(schedule, 0.5) == half


def test_options_are_found_by_their_type():
    assert counted(methods.rcm) == {"warmup"}
    options = {"warmup": 100, "scm_weight": Ramp(8), "steps": (4,), "critic_steps": 2}
    nested = {"dmd_options": {"warm_start": 50}, "scm_options": {"warmup": Ramp(6)}}
    found = stretched_options(FACTORIES, "rcm", {**options, **nested}, 0.5)
    assert found == {
        "warmup": 50,
        "scm_weight": Ramp(4),
        "steps": (4,),
        "critic_steps": 2,
        "dmd_options": {"warm_start": 25},
        "scm_options": {"warmup": Ramp(3)},
    }


@pytest.mark.parametrize("name", FACTORIES)
def test_defaults_keep_their_shares_of_a_run(name):
    """What is stretched there and back is what it was."""
    known = inspect.signature(FACTORIES[name]).parameters
    options = {key: given.default for key, given in known.items()}
    longer = stretched_options(FACTORIES, name, options, 3.0)
    assert stretched_options(FACTORIES, name, longer, 1 / 3) == options


def test_numbers_of_cycles_say_so():
    """An argument whose documentation counts cycles has the type that is looked for."""
    for factory in FACTORIES.values():
        doc = inspect.getdoc(factory)
        for name, given in inspect.signature(factory).parameters.items():
            said = doc.partition(f"  {name}: ")[2].partition("\n  ")[0]
            if isinstance(given.default, int) and re.match(
                r"cycles (of|without) ", said
            ):
                assert given.annotation in ("Cycles", Cycles), (factory, name)


def test_only_dataclasses_are_changed():
    @dataclasses.dataclass(frozen=True)
    class Own:
        at: "Cycles"
        other: int

    assert stretched(Own(10, 10), 0.5) == Own(5, 10)
    assert stretched("Ramp(4)", 0.5) == "Ramp(4)"
