"""Arguments against annotations: no text for a number, no number for a law."""

import dataclasses
import math
import typing
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import methods, times
from distilljax.experiment import specs
from distilljax.runtime import values


class Rule(typing.Protocol):
    """``x -> y``, elementwise."""

    def __call__(self, x: float) -> float: ...


@dataclasses.dataclass(frozen=True)
class Named:
    place: str


def called(
    *,
    scale: float = 1.0,
    count: int | None = None,
    told: bool = False,
    steps: tuple[int, ...] = (1,),
    ends: tuple[float, float] = (0.0, 1.0),
    rule: Rule = abs,
    schedule: float | Callable = 0.0,
    where: typing.Literal["here", "there"] = "here",
    free: typing.Any = None,
    **rest: int,
):
    """Takes some of each."""


GOOD = {
    "scale": [1, 2.5, np.float32(1), jnp.float32(1), jnp.int32(1)],
    "count": [None, 3, np.int64(3), jnp.int32(3)],
    "told": [True, False],
    "steps": [(), (1, 2), [1, 2], (np.int32(1),)],
    "ends": [(0, 1), [0.5, 1.0]],
    "rule": [abs, times.LogNormal(0.0, 1.0)],
    "schedule": [1, 0.5, abs],
    "where": ["there"],
    "free": [None, "a", [1]],
}
BAD = {
    "scale": [None, "1.0", True, math.nan, math.inf, [1.0], abs, jnp.bool_(True)],
    "count": [2.5, "3", True, (1,), jnp.float32(1.0)],
    "told": ["False", 0, 1.0, None],
    "steps": [1, "12", (1, 2.5), {1: 2}, None],
    "ends": [(0.0,), (0.0, "1"), 1.0],
    "rule": [None, "abs", 1.0],
    "schedule": ["0.5", None, (1.0,)],
    "where": ["elsewhere"],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_fits_is_left_alone(name):
    for value in GOOD[name]:
        values.check_call("{}", called, kwargs={name: value})


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name):
    for value in BAD[name]:
        with pytest.raises(ValueError, match=f"option '{name}' must be .*, got"):
            values.check_call("option {}", called, kwargs={name: value})


def test_messages_say_what_was_expected():
    def said(**given):
        with pytest.raises(ValueError, match="must be") as error:
            values.check_call("{}", called, kwargs=given)
        return str(error.value)

    assert said(rule="abs") == "'rule' must be a Rule, x -> y, elementwise, got 'abs'"
    assert said(count="3").endswith("or None, got '3', as text; leave the quotes out")
    assert "a list, each a whole number, got 4" in said(steps=4)
    assert "2 values (a finite number, a finite number)" in said(ends=1.0)


def test_arguments_in_order_and_after_the_first():
    def function(x: str, y: int): ...

    values.check_call("{}", function, ("a", 1))
    values.check_call("{}", function, (1,), first=1)
    with pytest.raises(ValueError, match="'y' must be a whole number, got 'a'"):
        values.check_call("{}", function, ("a",), first=1)
    values.check_call("{}", Named, ("here",))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        # A text that is not empty is true.
        ("scm", {"embed": "False"}, "'embed' of method 'scm' must be True or False"),
        ("scm", {"guidance": "2.0"}, "as text; leave the quotes out"),
        ("scm", {"law": "text"}, "must be a Law, .key, shape, path. -> times"),
        ("dmd2", {"steps": 4}, "'steps' of method 'dmd2' must be a list"),
        ("dmd2", {"fit": None}, "'fit' of method 'dmd2' must be a Fit, got None"),
        ("dmd2", {"critic_steps": 2.5}, "must be a whole number, got 2.5"),
        ("sana_sprint", {"path": None}, "must be a Path, got None"),
        ("mean_flow", {"path": 1.0}, "must be a Path or None, got 1.0"),
        ("scm", {"tangent": math.nan}, "'tangent' of method 'scm' must be a finite"),
    ],
)
def test_options_of_methods(name, options, said):
    with pytest.raises(ValueError, match=said):
        methods.build(name, **options)
    with pytest.raises(ValueError, match=said):
        getattr(methods, name)(**options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("LogNormal('a', 1.4)", "'mean' of LogNormal must be a finite number, got 'a'"),
        ("LogNormal(-1.0, std=None)", "'std' of LogNormal must be a finite number"),
        ("Pair(LogitNormal(0.0, 1.0), fixed=0)", "'fixed' of Pair must be True or"),
        ("Shifted(1.0, 3.0)", "'law' of Shifted must be a Law"),
        ("clip('hard')", "'limit' of clip must be a finite number, got 'hard'"),
    ],
)
def test_calls_in_configs(text, said):
    with pytest.raises(ValueError, match=said):
        specs.parse(text)
