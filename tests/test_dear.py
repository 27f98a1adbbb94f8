"""What the default run of the tests leaves out, and what a shard adds."""

import json

import pytest

from tests import dear

SECONDS = {"a.py::slow": 9.0, "a.py::quick": 2.5, "a.py::limit": dear.LIMIT}


class Item:
    """A collected test as far as marks go."""

    def __init__(self, nodeid, *marks):
        self.nodeid, self.marks = nodeid, set(marks)

    def add_marker(self, mark):
        self.marks.add(mark.name)

    def get_closest_marker(self, name):
        return name if name in self.marks else None


class Config:
    """A configuration with a shard, which notes what was left out."""

    def __init__(self, shard=None):
        self.shard, self.hook, self.left_out = shard, self, []

    def getoption(self, name):
        assert name == "--shard"
        return self.shard

    def pytest_deselected(self, items):
        self.left_out += items


def collected():
    names = [*SECONDS, "a.py::new", *(f"b.py::test[{i}]" for i in range(40))]
    return [Item(name, *(["full"] if "[" in name else [])) for name in names]


def test_what_took_long_is_marked():
    items = collected()
    dear.mark(Config(), items, SECONDS)
    marked = {item.nodeid for item in items if "full" in item.marks}
    assert marked >= {"a.py::slow", "a.py::limit"}
    assert not marked & {"a.py::quick", "a.py::new"}


def test_shards_part_the_marked_and_hold_the_rest():
    runs = []
    for part in (1, 2, 3):
        items, config = collected(), Config(f"{part}/3")
        dear.mark(config, items, SECONDS)
        runs.append({item.nodeid for item in items})
        assert len(items) + len(config.left_out) == len(collected())
    every = {item.nodeid for item in collected()}
    rest = {"a.py::quick", "a.py::new"}
    assert set.union(*runs) == every
    assert all(run >= rest for run in runs)
    assert sum(len(run - rest) for run in runs) == len(every - rest)
    assert min(len(run - rest) for run in runs) > 5


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", ""])
def test_a_wrong_shard_is_said(text):
    with pytest.raises(pytest.UsageError, match="k/n with k from 1 to n"):
        dear.read_shard(text)


def test_measured_seconds_replace_those_of_tests_that_ran(monkeypatch, tmp_path):
    monkeypatch.setattr(dear, "FILE", tmp_path / "seconds.json")
    dear.FILE.write_text(json.dumps({"a": 9.0, "b": 7.0, "c": 3.0}))

    class Report:
        def __init__(self, nodeid, duration):
            self.nodeid, self.duration = nodeid, duration

    measured = dear.Measured()
    for report in (Report("a", 1.0), Report("a", 4.0), Report("b", 0.1)):
        measured.pytest_runtest_logreport(report)
    measured.pytest_sessionfinish()
    assert dear.read() == {"a": 5.0, "c": 3.0}
