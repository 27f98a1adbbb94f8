"""The catalogue as text, and the pages that are generated from it."""

import ast
import json
import pathlib

import pytest

from distilljax import methods
from distilljax.experiment import catalogue
from distilljax.methods.registry import FAMILIES

ROOT = pathlib.Path(__file__).parents[2]
PAGES = catalogue.pages(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_what_is_generated(page):
    """``python -m distilljax.experiment.catalogue`` writes them."""
    assert page.read_text() == PAGES[page]()


def test_the_page_says_what_every_option_is():
    missing = []
    for name in methods.CATALOGUE:
        said = catalogue._arguments(name)
        missing += [f"{name}({k}=)" for k in catalogue.options(name) if not said.get(k)]
    assert not missing


def test_the_types_name_every_factory():
    tree = ast.parse(catalogue.types())
    named = {
        (node.module, alias.asname)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name, entry in methods.CATALOGUE.items():
        assert (entry.factory.__module__, name) in named
        assert getattr(methods, name) is entry.factory


def test_a_family_and_formats():
    names = catalogue.chosen("flow map")
    assert "mean_flow" in names
    assert "scm" not in names
    found = json.loads(catalogue.formatted(names, "json"))
    assert [row["name"] for row in found] == names
    assert found[0]["options"]
    assert catalogue.formatted(names, "md").count("\n") == len(names) + 1
    with pytest.raises(ValueError, match="unknown family 'flow'.*flow map"):
        catalogue.chosen("flow")
    with pytest.raises(ValueError, match="unknown format 'yaml'"):
        catalogue.formatted(names, "yaml")


def test_no_default_is_written_with_an_address():
    text = catalogue.page([])
    assert " at 0x" not in text
    assert "<function" not in text


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="needs the lines"):
        catalogue.readme("# A page")


def test_families_are_those_in_use():
    assert [f for f in FAMILIES if catalogue.chosen(f)] == list(FAMILIES)
