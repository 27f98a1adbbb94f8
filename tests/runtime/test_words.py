"""Names of configs are those that registered themselves."""

import dataclasses
import functools

import pytest

from distilljax import words
from distilljax.experiment import specs


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    monkeypatch.setattr(words, "CALLS", dict(words.CALLS))
    monkeypatch.setattr(words, "VALUES", dict(words.VALUES))


def test_what_registers_can_be_written():
    """A law, a metric and a transform of one's own."""

    @words.call
    @dataclasses.dataclass(frozen=True)
    class Halves:
        low: float = 0.0

    @words.value
    def own_metric(x):
        return x

    @words.partial
    def own_clip(c, most):
        return min(c, most)

    assert specs.parse("Halves(0.5)") == Halves(0.5)
    assert specs.resolve({"metric": "own_metric"}) == {"metric": own_metric}
    assert specs.parse("own_clip") is own_clip
    fixed = specs.parse("own_clip(2.0)")
    assert isinstance(fixed, functools.partial)
    assert fixed(5.0) == 2.0
    assert {"Halves", "own_metric", "own_clip"} <= set(specs.names())
    with pytest.raises(ValueError, match="Did you mean 'Halves'"):
        specs.parse("Halvs(0.5)")


def test_two_of_one_name_are_refused():
    def exact():
        pass

    with pytest.raises(ValueError, match="two things are called 'exact' in configs"):
        words.value(exact)
