"""What every method says of itself, and where it is found.

A method registers its factory in its own file; nothing lists methods by hand:

    @register(family="consistency", cite=SCM, summary="one line for every table")
    def scm(*, law=..., ...) -> Method: ...
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from distilljax.core.composition import compose
from distilljax.core.method import Citation, Method
from distilljax.runtime.errors import check_finite, unknown
from distilljax.runtime.values import check_call

# In the order of tables, and whether their students follow the teacher's flow, so that
# the noise says where a sample should end.
FAMILIES = {
    "regression": False,
    "consistency": True,
    "flow map": True,
    "trajectory": True,
    "distribution matching": False,
    "adversarial": False,
    "composed": False,
    "restoration": False,
    "reward": False,
}
Factory = TypeVar("Factory", bound=Callable[..., Method])


class Entry(NamedTuple):
    """A row of the catalogue.

    Attributes:
      factory: keyword arguments -> `Method`.
      cite: the paper; its ``id`` is the name of the method.
      family: one of `FAMILIES`.
      summary: what it does, in one line.
      teacher: whether it distils a teacher.
      makes: ``student``, a generator of few steps, ``teacher`` or ``restorer``.
      systems: ids of further published systems that it is, under some of its options.
      differs: where the code departs from the paper or its release by choice; markdown.
    """

    factory: Callable[..., Method]
    cite: Citation
    family: str
    summary: str
    teacher: bool = True
    differs: str = ""
    makes: str = "student"
    systems: tuple[str, ...] = ()

    @property
    def follows_flow(self) -> bool:
        """Whether its students follow the teacher's flow from the same noise."""
        return FAMILIES[self.family]

    def asks_for_more(self) -> str:
        """Why a teacher and noise are not enough for it; empty if they are.

        A reward or another network of the user's own is not counted.
        """
        return {
            "student": "",
            "teacher": "it makes teachers",
            "restorer": "it restores images, and there is nothing to restore",
        }[self.makes]


_FOUND: dict[str, Entry] = {}


def register(
    *,
    family: str,
    cite: Citation,
    summary: str,
    teacher: bool = True,
    differs: str = "",
    makes: str = "student",
    systems: tuple[str, ...] = (),
) -> Callable[[Factory], Factory]:
    """Enters the factory below it into the catalogue, under its own name.

    Its options are checked against its annotations and to be finite before it runs.

    Args:
      family: see `Entry`.
      cite: see `Entry`.
      summary: see `Entry`.
      teacher: see `Entry`.
      differs: see `Entry`.
      makes: see `Entry`.
      systems: see `Entry`.

    Raises:
      ValueError: for an unknown family, a citation of another method, or a second
        method of one name.
    """
    if family not in FAMILIES:
        raise ValueError(unknown("family", family, FAMILIES))

    def enter(factory: Factory) -> Factory:
        name = factory.__name__
        if cite.id != name:
            raise ValueError(f"method {name!r} cites {cite.id!r}; ids must be equal")
        before = _FOUND.get(name)
        if before is not None and before.factory.__module__ != factory.__module__:
            raise ValueError(
                f"two methods are called {name!r}: in {before.factory.__module__} and "
                f"{factory.__module__}; give one of them another name"
            )

        @functools.wraps(factory)
        def checked(**options: Any) -> Method:
            for option, value in options.items():
                check_finite(f"option {option!r} of method {name!r}", value)
            check_call(f"option {{}} of method {name!r}", factory, kwargs=options)
            return factory(**options)

        # What `wraps` leaves out.
        checked.__kwdefaults__ = factory.__kwdefaults__  # type: ignore[attr-defined]
        made = cast(Factory, checked)
        _FOUND[name] = Entry(
            made, cite, family, summary, teacher, differs, makes, systems
        )
        return made

    return enter


def discover(package: str, folders: Iterable[str]) -> dict[str, Entry]:
    """Imports every module of a package and returns what registered itself.

    Args:
      package: its full name.
      folders: where its modules lie.

    Returns:
      Entries by name, by family and then by year and number of the paper.
    """
    for module in pkgutil.walk_packages(folders, f"{package}."):
        importlib.import_module(module.name)

    def place(name: str) -> tuple[Any, ...]:
        entry = _FOUND[name]
        cite = entry.cite
        return list(FAMILIES).index(entry.family), cite.year, cite.venue, name

    return {name: _FOUND[name] for name in sorted(_FOUND, key=place)}


def build(entries: dict[str, Entry], name: str, **options: Any) -> Method:
    """Builds a registered method or a composition, see `distilljax.methods.build`."""
    if "+" in name:
        return _composed(entries, name.split("+"), options)
    if name not in entries:
        raise ValueError(unknown("method", name, entries))
    factory = entries[name].factory
    known = inspect.signature(factory).parameters
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of method {name!r}", option, known))
    try:
        return factory(**options)
    except TypeError as error:
        raise ValueError(
            f"options of method {name!r} do not fit ({error}): {options}"
        ) from error


# Arguments of `compose` that a composition by name takes.
COMPOSE = ("weights", "repeats", "draws", "rename")


def _composed(
    entries: dict[str, Entry], names: list[str], options: Mapping[str, Any]
) -> Method:
    """The composition of several methods, each with the options under its name."""
    known = (*names, *COMPOSE)
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                unknown(f"option of composition {'+'.join(names)!r}", option, known)
                + " Options of a method stand under its name."
            )
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(
                f"option {option!r} of composition {'+'.join(names)!r} must be a "
                f"mapping, got {value!r}"
            )
        if option in COMPOSE:
            check_finite(f"option {option!r} of a composition", value)
    parts = [build(entries, name, **(options.get(name) or {})) for name in names]
    return compose(*parts, **{k: options[k] for k in COMPOSE if k in options})
