"""Trainings of several seeds in one program."""

import jax
import numpy as np
import pytest

from distilljax.bench.entries import mixture_entries
from distilljax.bench.suites import COMPOSED, STEPS, composed_entry
from distilljax.bench.training import Sampler, cycles_for, setup_of, train
from distilljax.core.composition import compose
from distilljax.methods import CATALOGUE
from distilljax.training.cost import run_evaluations
from tests.bench.small import suite
from tests.methods import cases


@pytest.fixture(scope="module")
def made():
    return suite()


@pytest.fixture(scope="module")
def start(made):
    return made.backbone.init(jax.random.key(0))


def test_every_method_has_an_entry_or_a_reason(made):
    assert set(made.entries) | set(made.missing) == set(CATALOGUE)
    assert not set(made.entries) & set(made.missing)
    assert made.chosen("all") == made.chosen(None)
    assert made.chosen("sid,scm") == ["scm", "sid"]
    with pytest.raises(ValueError, match=r"has no 'tsd_sr': it restores"):
        made.chosen("tsd_sr")
    with pytest.raises(ValueError, match="unknown method 'smc'.*'scm'"):
        made.chosen("smc")


def test_a_composition_runs_as_its_methods_run_alone(made):
    assert made.chosen("compositions") == list(COMPOSED)
    assert made.chosen("sid+dmd,scm") == ["scm", "sid+dmd"]
    with pytest.raises(ValueError, match="unknown method 'smc'"):
        made.chosen("sid+smc")
    entry = composed_entry({n: made.entries[n] for n in ("sid", "dmd")}, {"dmd": 0.5})
    assert entry.each
    assert entry.nfes == (1,)
    method = entry.method("sid+dmd", 100, 1)
    own = {n: made.entries[n].method(n, 100, 1) for n in ("sid", "dmd")}
    wanted = compose(own["sid"], own["dmd"], weights={"dmd": 0.5})
    assert method.roles == wanted.roles
    found = [[(t.name, t.weight) for t in m.phases[-1].terms] for m in (method, wanted)]
    assert found[0] == found[1]
    settings = entry.settings(100)
    for role in ("fake_score", "dmd_fake_score"):
        name = role.partition("_fake")[0] if role.startswith("dmd") else "sid"
        assert settings[role] == made.entries[name].settings(100)["fake_score"]
    assert set(COMPOSED) == {n for n in COMPOSED if made.entry(n).nfes}


@pytest.mark.parametrize("name", cases.with_marks(sorted(mixture_entries())))
def test_a_run_spends_its_budget_and_no_more_than_a_cycle_less(made, name):
    entry, budget = made.entries[name], 400_000
    for nfe in STEPS[::2] if entry.each else STEPS[:1]:
        cycles = cycles_for(made, name, entry, budget, nfe)
        method = entry.method(name, cycles, nfe)
        setup = setup_of(made, method, made.counted(method), entry, cycles)
        spent = run_evaluations(setup, trips=entry.trips)
        assert spent <= 1.01 * budget
        assert spent + 1.5 * spent / cycles > budget


def test_a_seed_does_not_depend_on_the_others(made, start):
    entry = made.entries["diff_instruct"]
    both, one = (
        train(made, "diff_instruct", entry, start, budget=30_000, seeds=seeds, probes=1)
        for seeds in ((0, 1), (1,))
    )
    assert both.spent.cycles == one.spent.cycles > 1
    first = jax.tree.leaves(both.params)[-1]
    assert not np.array_equal(first[0], first[1])
    for a, b in zip(*map(jax.tree.leaves, (both.params, one.params)), strict=True):
        np.testing.assert_allclose(a[1], b[0], rtol=2e-3, atol=2e-4)
    assert both.spent.evaluations == one.spent.evaluations <= 30_300
    # Student, teacher, fake score and the student's average.
    assert both.spent.networks == 4
    x = [
        Sampler(made, run.method, run.network, 1)(run.params, seeds)
        for run, seeds in ((both, (0, 1)), (one, (1,)))
    ]
    np.testing.assert_allclose(x[0][1], x[1][0], atol=0.02)


def test_stages_are_trained_one_after_the_other(made, start):
    shares = []
    found = train(
        made,
        "progressive",
        made.entries["progressive"],
        start,
        budget=60_000,
        nfe=8,
        seeds=(0,),
        probes=2,
        progress=shares.append,
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert [share for share, _ in found.history] == pytest.approx([0.5, 1.0], abs=0.05)
    assert found.spent.skipped == 0
    assert found.spent.peak_bytes > 8 * found.spent.parameters / 3
