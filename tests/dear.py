"""Which tests the default run leaves out: those that take long, by measurement.

``seconds.json`` holds what tests took on one core of a quiet machine, the quick ones
left out. A test above `LIMIT` is marked ``full`` by it, beside those marked by hand, so
that the default run stays within its time as the catalogue grows. ``--shard=k/n`` runs
the k-th of n parts of the marked ones (``bash launch/test.sh --full=2/8``), and
``--measure`` writes the seconds of the tests that ran into the file.
"""

import collections
import json
import os
import pathlib
import zlib

import pytest

FILE = pathlib.Path(__file__).with_name("seconds.json")
LIMIT = 6.0
# Shorter ones are not written down.
KEPT = 2.0


def part_of(name, count):
    """The part of ``count`` that a test belongs to, 1 to ``count``."""
    return 1 + zlib.crc32(name.encode()) % count


def read_shard(text):
    """``(k, n)`` of ``"k/n"``; anything else is a usage error."""
    part, _, count = text.partition("/")
    if not (part.isdigit() and count.isdigit() and 1 <= int(part) <= int(count)):
        raise pytest.UsageError(
            f"--shard is k/n with k from 1 to n, such as 2/8, got {text!r}"
        )
    return int(part), int(count)


def addoption(parser):
    """Adds ``--shard`` and ``--measure``."""
    parser.addoption("--shard", help="k/n: one part of the tests marked full")
    parser.addoption(
        "--measure", action="store_true", help=f"write what tests took to {FILE.name}"
    )


def mark(config, items, seconds):
    """Marks dear tests and takes out those of other shards."""
    for item in items:
        if seconds.get(item.nodeid, 0.0) >= LIMIT:
            item.add_marker(pytest.mark.full)
    shard = config.getoption("--shard")
    if shard is None:
        return
    part, count = read_shard(shard)
    left_out = [
        item
        for item in items
        if item.get_closest_marker("full") and part_of(item.nodeid, count) != part
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def read():
    """Seconds by name of the test."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


class Measured:
    """Adds up what every test takes and writes it at the end."""

    def __init__(self):
        self.seconds = collections.Counter()

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self):
        kept = {n: round(s, 1) for n, s in self.seconds.items() if s >= KEPT}
        others = {n: s for n, s in read().items() if n not in self.seconds}
        found = dict(sorted({**others, **kept}.items()))
        FILE.write_text(json.dumps(found, indent=0) + "\n")


def configure(config):
    """Measures, in the process that sees the reports of all workers."""
    if config.getoption("--measure") and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Measured())
