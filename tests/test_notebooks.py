"""The notebooks of ``examples/`` run, in small; ``--full`` runs them as they are."""

import json
import pathlib

import matplotlib.pyplot as plt
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text())["cells"]


def run(path, monkeypatch, small):
    """Runs the code cells in one namespace, without a kernel."""
    monkeypatch.setenv("DISTILLJAX_SMALL", "1" if small else "")
    monkeypatch.setattr(plt, "show", plt.close)
    space = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        if cell["cell_type"] == "code":
            code = compile("".join(cell["source"]), f"{path.name}[{number}]", "exec")
            exec(code, space)
    return space


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped_and_titles_stand_first(path):
    first, *_ = cells(path)
    assert first["cell_type"] == "markdown"
    assert "".join(first["source"]).startswith("# ")
    for cell in cells(path):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_small(path, monkeypatch):
    space = run(path, monkeypatch, small=True)
    assert space["SMALL"]
    x = space["distilljax"].sample(space["student"], steps=1, labels=[0, 1])
    assert x.shape == (2, 2)
    assert np.all(np.isfinite(x))


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_student_of_a_notebook_is_nearer_than_one_step_of_its_teacher(
    path, monkeypatch
):
    space = run(path, monkeypatch, small=False)
    labels = np.arange(1000) % space["source"].num_classes
    real = space["source"].take(np.arange(1000))["x0"]
    distances = [
        space["distilljax"].evaluation.statistics.energy_distance(
            space["distilljax"].sample(space[who], steps=1, labels=labels), real
        )
        for who in ("teacher", "student")
    ]
    assert distances[1].value < 0.2 * distances[0].value
