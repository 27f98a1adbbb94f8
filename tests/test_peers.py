"""Comparisons with official codes: our sides run in miniature, theirs are asked for."""

import pytest

from benchmarks.measure import TINY
from benchmarks.peers import meanflow, shortcut, side
from distilljax.times import Pair


def test_our_sides_cost_what_the_official_ones_do():
    mine = meanflow.ours(16, TINY, Pair(fixed=True))
    theirs = shortcut.ours(16, TINY)
    # Of a miniature's products those of the labels and times are a good part.
    assert mine.forwards == pytest.approx(3.25, rel=0.03)
    assert theirs.forwards == pytest.approx(3.25, rel=0.03)
    found = side.compare(
        "one", mine, theirs, TINY, forwards=4.0, seconds=(9.0, 9.0), memory=(9.0, 9.0)
    )
    assert [r["name"].split(": ")[1] for r in found] == [
        "evaluations",
        "temporaries",
        "processor time",
    ]
    assert found[0]["passed"]
    assert len(found[-1]["pairs"]) == TINY.pairs


@pytest.mark.parametrize("module", [meanflow, shortcut])
def test_a_folder_without_the_code_is_refused_with_where_to_get_it(module, tmp_path):
    for folder, came in ((None, "no folder"), (str(tmp_path), module.PEER.file)):
        with pytest.raises(ValueError, match=came) as caught:
            module.run(TINY, folder)
        assert module.PEER.commit in str(caught.value)
        assert "--peer=FOLDER" in str(caught.value)
