"""What the pictures of a bench are drawn from."""

import numpy as np
import pytest

from distilljax.bench.pictures import front, spread, styles
from distilljax.bench.report import summary
from distilljax.methods import CATALOGUE
from tests.bench.test_report import RESULTS


def test_the_front_is_what_nothing_beats():
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 6.0), (2.0, 2.0), (4.0, 1.0)]
    assert front(points) == [(1.0, 5.0), (2.0, 2.0), (3.0, 1.0)]


def test_names_are_moved_apart_and_no_further():
    heights = [0.9, 0.5, 0.52, 0.51, 0.1]
    found = spread(heights, 0.1)
    np.testing.assert_allclose(found, [0.9, 0.41, 0.61, 0.51, 0.1], atol=1e-9)
    assert spread([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_names_stay_beside_the_axis(at):
    found = spread([at] * 40, 0.1)
    np.testing.assert_allclose(sorted(found), np.linspace(0, 1, 40), atol=1e-9)
    assert min(spread([at] * 3, 0.1)) >= 0.0
    assert max(spread([at] * 3, 0.1)) <= 1.0


def test_every_method_of_the_catalogue_has_a_colour_of_its_own():
    found = styles({"rows": [{"name": name} for name in CATALOGUE]})
    assert len({colour for colour, _ in found.values()}) == min(len(CATALOGUE), 28)
    assert list(found) == list(CATALOGUE)


def test_tables_keep_the_order_of_the_run_and_say_the_rank():
    titles, lines = summary(RESULTS)
    names = [line[0] for line in lines]
    assert names[-2:] == ["late", "good"]
    at = titles.index("rank")
    assert [line[at] for line in lines[-2:]] == ["2", "1"]
    assert len({len(line) for line in lines}) == 1 == len({len(titles), len(lines[0])})
