"""Methods register themselves; what is wrong with an entry is said at import."""

import dataclasses
import sys

import pytest

from distilljax.methods import CATALOGUE, registry, scm
from distilljax.methods.consistency.scm import SCM


@pytest.fixture
def found(monkeypatch):
    """The entries of a registry that tests may change."""
    monkeypatch.setattr(registry, "_FOUND", dict(registry._FOUND))
    return registry._FOUND


def entered(name, **changes):
    def factory(**options):
        return scm(**options)

    factory.__name__ = name
    given = {
        "family": "consistency",
        "cite": dataclasses.replace(SCM, id=name),
        "summary": "a method of a test",
        **changes,
    }
    return registry.register(**given)(factory)


def test_a_method_in_a_file_of_its_own_is_found(tmp_path, monkeypatch, found):
    """Also in a folder below, which is how families will be kept."""
    package = tmp_path / "some_methods"
    (package / "family").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "family" / "__init__.py").touch()
    (package / "family" / "mine.py").write_text(
        "import dataclasses\n"
        "from distilljax.methods.consistency.scm import SCM, scm\n"
        "from distilljax.methods.registry import register\n"
        "CITE = dataclasses.replace(SCM, id='mine', year=2030)\n"
        "@register(family='consistency', cite=CITE, summary='mine')\n"
        "def mine(*, p=1.0):\n"
        "    return scm()._replace(name='mine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = registry.discover("some_methods", [str(package)])
    names = list(entries)
    assert set(names) == {*CATALOGUE, "mine"}
    # The last of its family, by its year.
    assert entries[names[names.index("mine") + 1]].family != "consistency"
    assert registry.build(entries, "mine", p=2.0).name == "mine"
    for module in [m for m in sys.modules if m.startswith("some_methods")]:
        monkeypatch.delitem(sys.modules, module)


def test_the_order_of_tables(found):
    families = [entry.family for entry in CATALOGUE.values()]
    assert families == sorted(families, key=list(registry.FAMILIES).index)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "consistencies"}, "unknown family 'consistencies'.*consistency"),
        ({"cite": SCM}, "method 'other' cites 'scm'; ids must be equal"),
    ],
)
def test_a_wrong_entry_is_refused(changes, message, found):
    with pytest.raises(ValueError, match=message):
        entered("other", **changes)


def test_two_methods_of_one_name_are_refused(found):
    with pytest.raises(ValueError, match="two methods are called 'scm'"):
        entered("scm", cite=SCM)
