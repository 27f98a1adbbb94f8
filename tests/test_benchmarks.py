"""Benchmarks in miniature: they run, count right and write what a reader needs.

Ratios of miniatures say nothing, so only the counts are judged.
"""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import (
    compile_time,
    data_sources,
    digits_cards,
    dmd2_cycle,
    measure,
    sampling,
    scm_jvp,
    trainer_step,
)
from benchmarks.measure import TINY


@pytest.mark.parametrize(
    ("run", "facts"),
    [
        (lambda: trainer_step.compare("flow_matching", TINY), 1),
        pytest.param(lambda: dmd2_cycle.run(TINY), 1, marks=pytest.mark.full),
        (lambda: sampling.compare("mean_flow", 2, TINY), 2),
        (lambda: scm_jvp.run(TINY), 1),
    ],
    ids=["trainer_step", "dmd2_cycle", "sampling", "scm_jvp"],
)
def test_counts_are_met(run, facts):
    results = run()
    counted = [r for r in results if "pairs" not in r]
    assert len(counted) == facts
    for result in counted:
        assert result["passed"], result
    for result in results:
        if "pairs" in result:
            assert len(result["pairs"]) == TINY.pairs
            assert 0 < result["low"] <= result["value"] <= result["high"]


def test_every_kind_of_source_is_measured():
    results = data_sources.run(TINY)
    assert [r["name"] for r in results] == [f"{n} [us]" for n in data_sources.LIMITS]
    for result in results:
        assert result["low"] > 0.0
        rate = result["images_per_second_and_core"]
        assert rate == pytest.approx(1e6 / result["value"])


def test_the_compilation_of_methods_names_the_slowest():
    (found,) = compile_time.run(TINY)
    taken = list(found["methods"].values())
    assert set(found["methods"]) == set(compile_time.TINY)
    assert taken == sorted(taken, reverse=True)
    assert found["value"] == pytest.approx(sum(taken) / len(taken), abs=0.01)
    assert next(iter(found["methods"])) in found["what"]


def test_contenders_take_turns():
    turns = []

    def contender(name):
        def block():
            turns.append(name)
            return 1.0

        return block

    rows = measure.interleaved(contender("a"), contender("b"), 3, warm=1)
    assert rows == [[1.0, 1.0]] * 3
    assert "".join(turns) == "ab" * 4


def test_a_ratio_is_the_median_of_pairs_with_its_bounds():
    pairs = [[2.0, 1.0], [1.0, 1.0], [30.0, 10.0]]
    found = measure.ratio("a", "a over b", pairs, limit=1.5, goal=1.0, steps=2)
    assert found["value"] == pytest.approx(2.0)
    assert (found["low"], found["high"]) == pytest.approx((1.0, 3.0))
    assert not found["passed"]
    assert found["milliseconds"] == pytest.approx([1000.0, 500.0])
    assert measure.ratio("a", "", pairs, limit=2.0)["passed"]


def test_compilations_are_counted():
    with measure.compilations() as names:
        doubled = jax.jit(lambda x: 2 * x + 1)
        doubled(jnp.ones(3)).block_until_ready()
        before = len(names)
        doubled(jnp.ones(3)).block_until_ready()
    assert before >= 1
    assert len(names) == before


@pytest.mark.parametrize(("limit", "code"), [(3.0, 0), (1.0, 1)])
def test_the_record_says_where_and_how(tmp_path, capsys, limit, code):
    def run(scale):
        assert scale.pairs == 5
        return [
            measure.ratio("slow", "slow over fast", [[2.0, 1.0]] * 5, limit=limit),
            measure.fact("programs", "programs compiled", 1, 1),
        ]

    out = tmp_path / "deep" / "found.json"
    arguments = ["--tiny", "--pairs=5", f"--out={out}"]
    assert measure.main(run, "all", "About.", arguments) == code
    record = json.loads(out.read_text())
    assert {"date", "command", "scale", "seconds", "hardware", "versions"} <= set(
        record
    )
    assert [r["passed"] for r in record["results"]] == [code == 0, True]
    printed = capsys.readouterr().out
    assert ("missed" in printed) == (code == 1)


def test_cards_are_judged_once_and_a_failed_one_is_a_row(tmp_path, monkeypatch, capsys):
    out = tmp_path / "cards"
    arguments = ["--tiny", "--cards=reflow,ect", "--seeds=1", f"--out={out}"]
    trained, fit = [], digits_cards.api.fit

    def fit_or_stop(method, **options):
        trained.append(method.name)
        if method.name == "ect":
            raise stops.pop()
        return fit(method, **options)

    monkeypatch.setattr(digits_cards.api, "fit", fit_or_stop)
    stops = [FloatingPointError("3 updates in a row"), KeyboardInterrupt()]
    # Interrupted, what is done is kept.
    with pytest.raises(KeyboardInterrupt):
        digits_cards.main(arguments)
    assert set(json.loads((out / "cards.json").read_text())["rows"]) == {
        "teacher/0",
        "reflow/0",
    }
    assert digits_cards.main(arguments) == 1
    assert trained == ["flow_matching", "reflow", "ect", "ect"]
    found = json.loads((out / "cards.json").read_text())
    assert found["rows"]["ect/0"]["error"] == "FloatingPointError: 3 updates in a row"
    row = found["rows"]["reflow/0"]
    assert set(row["by_nfe"]) == {"1", "2", "4"}
    ratio = (
        row["by_nfe"]["2"]["frechet"]
        / (found["rows"]["teacher/0"]["by_nfe"]["50"]["frechet"])
    )
    table = (out / "cards.md").read_text()
    assert f"| {ratio:.2f} |" in next(x for x in table.splitlines() if "reflow" in x)
    assert "| `ect`, seed 0 | FloatingPointError: 3 updates in a row |" in table
    assert "reflow/0: done before" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        digits_cards.main(["--cards=reflw"])
    assert "Did you mean 'reflow'" in capsys.readouterr().err


def test_every_card_has_its_evaluations_and_its_teacher():
    for name in digits_cards.names():
        method = digits_cards.read(name, 0, True).method.name
        nfe = digits_cards.evaluations(name)
        assert (nfe == (50,)) == (method in ("denoising", "flow_matching"))
        assert digits_cards.teacher_of(name) in ("teacher", "restoration_teacher")
    assert digits_cards.evaluations("tsd_sr") == (1,)
    assert digits_cards.teacher_of("tsd_sr") == "restoration_teacher"
