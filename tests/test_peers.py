"""Comparisons with official codes: our sides run in miniature, theirs are asked for."""

import pytest

from benchmarks.measure import TINY
from benchmarks.peers import drifting, fastgen, imf, meanflow, shortcut, side
from distilljax.diffusion.times import Pair


def test_our_sides_cost_what_the_official_ones_do():
    mine = meanflow.ours(4, TINY, Pair(fixed=True))
    theirs = shortcut.ours(4, TINY)
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


def test_what_comes_next_to_a_method_is_compared_for_an_operation():
    mine = drifting.ours(2, TINY)
    assert mine.forwards == pytest.approx(3.0, rel=0.03)
    # Twice the work in the same seconds and bytes.
    theirs = mine._replace(flops=2 * mine.flops)
    found = side.compare(
        "one",
        mine._replace(block=lambda: 1.0),
        theirs._replace(block=lambda: 1.0),
        TINY,
        forwards=3.0,
        seconds=(3.0, 3.0),
        memory=(3.0, 3.0),
        alike=False,
    )
    assert [r["value"] for r in found[1:]] == pytest.approx([2.0, 2.0])


def test_fastgen_cycles_run_on_our_side():
    sizes = fastgen.SIZES | {"side": 8, "width": 16, "depth": 1, "heads": 2}
    sizes |= {"classes": 3, "batch": 4, "critic_steps": 1}
    mine = fastgen.ours("scm", fastgen.network_of("scm", sizes), sizes)
    assert mine.block() > 0.0
    assert mine.flops > 0.0


@pytest.mark.parametrize("module", [drifting, imf, meanflow, shortcut])
def test_a_folder_without_the_code_is_refused_with_where_to_get_it(module, tmp_path):
    for folder, came in ((None, "no folder"), (str(tmp_path), module.PEER.file)):
        with pytest.raises(ValueError, match=came) as caught:
            module.run(TINY, folder)
        assert module.PEER.commit in str(caught.value)
        assert "--peer=FOLDER" in str(caught.value)


def test_fastgen_asks_for_its_folder_too():
    with pytest.raises(ValueError, match=fastgen.PEER.commit):
        fastgen.main(["--peer-python=python", "--tiny"])
