"""``distilljax bench`` as a user calls it."""

import json

import pytest

from distilljax import cli
from distilljax.bench import QUICK, make_suite


def test_a_quick_bench_of_eight_methods(tmp_path, capsys):
    """Every one of the eight ends ahead of its start at one evaluation."""
    assert len(QUICK) == 8
    assert cli.main(["bench", "--quick", f"--out={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [row["name"] for row in found["rows"]] == sorted(
        QUICK, key=[row["name"] for row in found["rows"]].index
    )
    assert {row["name"] for row in found["rows"]} == set(QUICK)
    start = found["pretrained"]["1"]["energy_distance"]["mean"]
    for row in found["rows"]:
        own = row["by_nfe"]["1"]["energy_distance"]["mean"]
        print(row["name"], own, start)
        assert own < 0.5 * start, row["name"]
    assert "report:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite=digit"], "unknown suite 'digit'.*'digits'"),
        (["--suite=digits", "--dimension=3"], "belong to --suite=mixture"),
        (["--oracle=x.npz", "--dimension=3"], "leave oracle_seed and dimension"),
        (["--oracle=x.npz"], r"no oracle x\.npz"),
        (["--methods=smc"], "unknown method 'smc'"),
        (["--sed=3"], "unknown argument '--sed'.*'--seeds'"),
    ],
)
def test_mistakes_are_named(arguments, words, tmp_path, capsys):
    import re

    out = [f"--out={tmp_path / 'out'}"]
    try:
        status = cli.main(["bench", *out, *arguments])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert re.search(words, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "out").exists()


def test_a_suite_in_64_dimensions():
    suite = make_suite("mixture", dimension=64)
    assert suite.sample_shape == (64,)
    assert suite.judge.count == 4096
