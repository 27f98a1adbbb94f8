"""The pages that the site of the documentation adds to the guides."""

import pathlib
import re
import tomllib

import pytest
import yaml

import distilljax
from distilljax.__about__ import __version__
from distilljax.experiment import cards
from distilljax.methods import CATALOGUE
from docs.site import api_pages, equations, guides, hooks, method_pages

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_page_has_equation_options_example_and_citation(name):
    page = method_pages.page(name)
    assert hooks.made()[method_pages.page_of(name)]() == page
    assert page.startswith(f"# {name}\n")
    formulas = equations.of(method_pages.equation(name))
    assert formulas
    for formula in formulas:
        assert formula in page
    for option in distilljax.experiment.catalogue.options(name):
        assert re.search(rf"^\| `{option}` \| .*`.* \| \S", page, re.M), option
    for term in method_pages.build(name).phases[-1].terms:
        assert re.search(rf"^ *minimise .*\b{term.name}\b", page, re.M), term.name
    assert f"@misc{{{name}," in page


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_example_trains_its_method(name, monkeypatch):
    """What stands on the page runs up to the training itself."""
    trained = []

    def fit(method, *, networks, source, teacher=None, params=None, **rest):
        given = {r for r, role in method.roles.items() if role.init == "given"}
        assert given <= {"teacher", *(params or {})}
        assert not method.taught or teacher is not None
        assert {role.network for role in method.roles.values()} <= {*networks}
        trained.append(method.name)
        return method.name

    def fit_card(card, teacher=None):
        found = cards.expand(card, source=cards.outline(card))
        assert not found.method.taught or teacher is not None
        trained.append(found.method.name)
        return found.method.name

    def sample(student, *, steps, count):
        assert student == trained[-1]

    for made in (fit, fit_card, sample):
        monkeypatch.setattr(distilljax, made.__name__, made, raising=False)
    given = dict.fromkeys(["network", "source", "teacher"], object())
    for role in method_pages.build(name).roles:
        given |= {f"{role}_network": object(), f"{role}_params": object()}
    exec(method_pages.example(name), given)
    assert trained[-1] == name


def test_the_index_and_the_navigation_have_every_method():
    index = method_pages.index()
    listed = re.findall(r"methods/(\w+)\.md", repr(method_pages.navigation()))
    assert [name for name in listed if name != "index"] == list(CATALOGUE)
    for name in CATALOGUE:
        assert f"[`{name}`](/docs/methods/{name}.md)" in index


def test_rows_of_the_guides_are_found():
    bench = [row for row in guides.rows() if row.place.file == "docs/bench.md"]
    assert {row.cells[0].strip("`") for row in bench} >= {"scm", "dmd2", "ctm"}
    page = method_pages.page("scm")
    assert "](/docs/bench.md#" in page
    assert "golden vectors" in page


def test_every_picture_of_the_guides_is_in_the_gallery():
    shown = re.findall(r"!\[[^]]*\]\(/([^)]+)\)", guides.gallery())
    assert {ROOT / file for file in shown} == set((ROOT / "docs").rglob("*.png"))


def test_every_module_has_a_page_with_its_names():
    found = api_pages.modules()
    files = {
        path
        for path in (ROOT / "distilljax").rglob("*.py")
        if not path.name.startswith("_") or path.name == "__init__.py"
    }
    assert {ROOT / module.file for module in found.values()} == files
    assert len({module.page for module in found.values()}) == len(found)
    paths = found["distilljax.diffusion.paths"]
    assert "trigflow" in paths.defines
    assert "Short name: `distilljax.paths`" in api_pages.page(paths)


@pytest.mark.parametrize(
    ("name", "module", "meant"),
    [
        ("losses.eulerian", "", "distilljax.losses.trajectory.eulerian"),
        ("Path", "distilljax.diffusion.paths", "distilljax.diffusion.paths.Path"),
        ("methods.weights", "", "distilljax.methods.weights"),
        ("no_such_name", "", None),
    ],
)
def test_what_a_name_in_backticks_means(name, module, meant):
    assert api_pages.meaning(name, module) == meant


def test_names_become_references_and_code_stays():
    text = api_pages.linked("``x`` and `losses.eulerian`, `nothing_here`")
    assert text == (
        "``x`` and [`losses.eulerian`][distilljax.losses.trajectory.eulerian], "
        "`nothing_here`"
    )


@pytest.mark.parametrize(
    ("link", "page", "there"),
    [
        ("docs/bench.md#results", "index.md", "bench.md#results"),
        ("docs/methods.md#scm", "index.md", "methods/scm.md"),
        ("methods.md", "adding_a_method.md", "methods/index.md"),
        (
            "../examples/own_loop_scm.py",
            "your_own_network.md",
            "examples/own_loop_scm.md",
        ),
        ("../distilljax/sampling/editing.py", "editing.md", "api/sampling/editing.md"),
        ("/docs/bench.md", "methods/scm.md", "../bench.md"),
        ("../docs/data.md", "examples/distil_your_first_teacher.md", "../data.md"),
        ("https://arxiv.org/abs/2410.11081", "index.md", None),
        ("#suites", "bench.md", None),
    ],
)
def test_links_of_the_repository_are_links_of_the_site(link, page, there):
    assert hooks.moved(link, page) == (link if there is None else there)


def test_formulas_are_set_apart_and_short_code_is_not():
    text = equations.displayed(
        "With ``g`` the loss is ``|F - sg(F + g)|^2 / (2 D) - w(t)`` (eq. 8). Then."
    )
    assert text == (
        "With ``g`` the loss is\n\n```text\n|F - sg(F + g)|^2 / (2 D) - w(t)        "
        "(eq. 8)\n```\n\nThen."
    )


def test_the_citation_file_says_what_the_project_says():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["cff-version"] == "1.2.0"
    assert cff["title"] == PROJECT["name"]
    assert cff["version"] == __version__
    assert cff["license"] == PROJECT["license"]
    assert cff["type"] == "software"
    assert cff["authors"]
    assert cff["message"]
