"""Experiment cards: one config file is one experiment.

A card is an `ml_collections.ConfigDict` of plain values:

    method     name and options of a registered method (see `distilljax.specs` for laws)
    source     name and arguments of a data source
    networks   key -> name and arguments of a network builder; what a method wants
               beside the backbone is filled in where it is left out
    teacher    run folder of the teacher, for methods that distil one
    lora       optional: roles that become adapters on a frozen base, rank, scale
    cycles, batch_size, seed, mesh, ...   fields of `training.TrainConfig`
    student, fake_score, ...              settings of the trained roles

`card` fills every default in, so that each value can be overridden from the shell
(``--config.student.lr=1e-4``); `expand` turns a card into the objects that train.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import inspect
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from distilljax import methods, networks
from distilljax.core.binding import Network
from distilljax.core.method import Method
from distilljax.experiment import given, players, specs
from distilljax.runtime import promotion, words
from distilljax.runtime.errors import check_finite, unknown
from distilljax.runtime.values import check_call
from distilljax.training.config import RoleConfig, TrainConfig
from distilljax.training.placement import AXES

FACTORIES = {name: entry.factory for name, entry in methods.CATALOGUE.items()}
_OWN = ("method", "source", "networks", "teacher", "lora")


class Adapters(NamedTuple):
    """The section ``lora`` of a card: adapters in place of whole networks.

    Attributes:
      roles: trained roles that become the base plus an adapter; their sections are
        called ``<role>_lora``.
      base: role whose parameters they share, frozen.
      rank: of the products.
      match: regular expression of the kernels that are adapted.
      scale: factor of the products.
    """

    roles: tuple[str, ...] = ("student",)
    base: str = "teacher"
    rank: int = 8
    match: str = "kernel$"
    scale: float = 1.0

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Adapters:
        """Reads a section.

        Raises:
          ValueError: on an unknown key.
        """
        if not isinstance(section, Mapping):
            raise ValueError(f"lora must be a mapping, got {section!r}")
        for key in section:
            check_finite(f"lora.{key}", section[key])
            if key not in cls._fields:
                raise ValueError(unknown("argument of lora", key, cls._fields))
        check_call("argument {} of lora", cls, kwargs=section)
        return cls(**section)

    def method(self, method: Method) -> Method:
        """See `networks.with_lora`."""
        return networks.with_lora(
            method, tuple(self.roles), base=self.base, scale=self.scale
        )

    def network(self, built: Mapping[str, Network]) -> Network:
        """The adapters of the backbone, see `networks.lora`.

        Raises:
          ValueError: if an adapted role has a network of its own, which the base's
            parameters do not fit.
        """
        for role in (*self.roles, self.base):
            if role in built:
                raise ValueError(
                    f"lora adapts the backbone's parameters, and role {role!r} has a "
                    f"network of its own; take networks.{role} or the role out"
                )
        return networks.lora(built["backbone"], rank=self.rank, match=self.match)


class Experiment(NamedTuple):
    """A card with its objects.

    Attributes:
      config: the card as plain nested dicts.
      method: the method.
      networks: networks by key.
      source: the data source.
      train: how it is trained.
      teacher: run folder of the teacher, or None.
      params: parameters of roles whose networks the card names and does not build, see
        `given`.
    """

    config: dict[str, Any]
    method: Method
    networks: dict[str, Network]
    source: Any
    train: TrainConfig
    teacher: str | None
    params: Mapping[str, Any] = {}


@promotion.usual()
def card(
    method: str,
    options: Mapping[str, Any] | None = None,
    *,
    source: Mapping[str, Any],
    networks: Mapping[str, Mapping[str, Any]],
    teacher: str | None = None,
    lora: Mapping[str, Any] | None = None,
    **train: Any,
) -> ConfigDict:
    """Builds a card with every default filled in.

    Args:
      method: registry id.
      options: options of its factory, laws as text.
      source: ``name`` and arguments.
      networks: key -> ``name`` and arguments; ``backbone`` alone will do, see
        `players.sections`.
      teacher: run folder of the teacher.
      lora: values of `Adapters`, for adapters in place of whole networks.
      **train: fields of `TrainConfig`; role names hold their sections, ``default`` what
        they share. The sections of adapted roles are called ``<role>_lora``.

    Returns:
      The card, locked.

    Raises:
      ValueError: on an unknown method, option, key, or section of a role that is not
        trained.
    """
    built = methods.build(method, **specs.resolve(dict(options or {})))
    if lora is not None:
        built = Adapters.of(lora).method(built)
    settings = TrainConfig.of(dict(train), roles=built.roles)
    for role in settings.roles:
        if role not in built.trained:
            raise ValueError(unknown("trained role", role, built.trained))
    plain = settings.to_dict()
    del plain["roles"]
    plain["mesh"] = {axis: 1 for axis in AXES} | plain["mesh"]
    for role in built.trained:
        plain[role] = TrainConfig(roles={role: settings.role(role)}).to_dict()["roles"][
            role
        ]
    config = ConfigDict(
        {
            "method": _method(method, options or {}),
            "source": _filled(source, words.SOURCES),
            "networks": {
                key: _filled(net, words.NETWORKS)
                for key, net in players.beside(built.roles, networks).items()
            },
            "teacher": teacher or "",
            **({} if lora is None else {"lora": _complete(lora, Adapters)}),
            **plain,
        },
        convert_dict=True,
        allow_dotted_keys=False,
    )
    config.lock()
    return config


def _method(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a method; a composition has one for each of its methods."""
    if "+" not in name:
        return _filled({"name": name, **options}, FACTORIES)
    parts = name.split("+")
    own = {part: _complete(options.get(part, {}), FACTORIES[part]) for part in parts}
    weights = {part: 1.0 for part in parts} | dict(options.get("weights", {}))
    return {"name": name, **options, "weights": weights, **own}


def _filled(spec: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """A section with the defaults that can be written as plain values."""
    name = str(spec.get("name"))
    if name not in known:
        return dict(spec)
    return _complete(spec, known[name], {"name": name})


def _complete(
    spec: Mapping[str, Any], builder: Any, start: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A section with the defaults of what reads it."""
    out: dict[str, Any] = dict(start or {})
    for key, parameter in inspect.signature(builder).parameters.items():
        default = parameter.default
        if key in spec:
            out[key] = spec[key]
        elif isinstance(default, tuple):
            out[key] = tuple(default)
        elif isinstance(default, (bool, int, float, str)):
            # The name of a network stays that of its builder.
            out.setdefault(key, default)
        elif _readable(default):
            out[key] = repr(default)
    return {**spec, **out}


def _readable(value: Any) -> bool:
    """Whether a value is what its text says."""
    try:
        return specs.parse(repr(value)) == value and value is not None
    except ValueError:
        return False


def check_sections(plain: Any, what: str = "a card") -> None:
    """Checks that a card has its sections, and that they are mappings with a name.

    Args:
      plain: the card as plain dicts, whoever wrote it.
      what: how errors call it.

    Raises:
      ValueError: naming the section, with what it should be like.
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{what} must be a mapping, got {type(plain).__name__}")
    for key in _OWN[:3]:
        if key not in plain:
            raise ValueError(f"{what} needs {key!r}; it has {sorted(plain)}")
    networks = plain["networks"]
    if not isinstance(networks, Mapping):
        raise ValueError(
            f"{what} needs networks by key, such as {{'backbone': {{'name': 'mlp'}}}}, "
            f"got {networks!r}"
        )
    named = {"method": plain["method"], "source": plain["source"]}
    named |= {f"networks.{key}": section for key, section in networks.items()}
    for key, section in named.items():
        if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
            raise ValueError(
                f"section {key!r} of {what} must be a mapping with a name, such as "
                f"{{'name': ...}}, got {section!r}"
            )


@promotion.usual()
def expand(
    config: Mapping[str, Any] | ConfigDict,
    *,
    source: Any = None,
    outside: bool = True,
) -> Experiment:
    """The objects of a card.

    Args:
      config: a card, or its plain dicts.
      source: in place of the one that the card names.
      outside: whether networks are made that the card does not build, see `given`. A
        stored card may come from anyone, and an import path in it runs code.

    Returns:
      The experiment.

    Raises:
      ValueError: on an unknown method, option, source, network, role or key.
    """
    plain = config.to_dict() if isinstance(config, ConfigDict) else _copy(config)
    check_sections(plain)
    options = dict(plain["method"])
    method = methods.build(options.pop("name"), **specs.resolve(options))
    adapters = Adapters.of(plain["lora"]) if plain.get("lora") else None
    if adapters is not None:
        method = adapters.method(method)
    if source is None:
        source = _make("source", plain["source"], words.SOURCES)
    built: dict[str, Network] = {}
    params: dict[str, Any] = {}
    told = source
    if plain.get("ignore_cond"):
        told = Outline(tuple(source.sample_shape), None)
    wanted = players.sections(method.roles, plain["networks"])
    for key in sorted(wanted, key=lambda k: k != "backbone"):
        spec = dict(wanted[key])
        if given.is_given(spec):
            if outside:
                built[key], found = given.make(key, spec)
                params |= {role: found for role in _roles_of(method, key, wanted)}
            continue
        built[key] = _make(
            "network", {**_taken(told, built, spec), **spec}, words.NETWORKS
        )
    if adapters is not None:
        built["lora"] = adapters.network(built)
    rest = {k: v for k, v in plain.items() if k not in _OWN}
    for role in [r for r in rest if isinstance(rest[r], Mapping)]:
        if role in method.roles or role not in every_role():
            continue
        # An option may take a role out (gan_weight=0 the discriminator), whose section
        # then says nothing; a role that the method never has is a mistake.
        left_alone = TrainConfig.of({role: rest[role]}).role(role) == RoleConfig()
        if not left_alone and role not in methods.build(method.name).roles:
            raise ValueError(
                f"the card sets role {role!r}, which method {method.name!r} does "
                f"not have: {unknown('role', role, method.roles)}"
            )
        del rest[role]
    return Experiment(
        config=plain,
        method=method,
        networks=built,
        source=source,
        train=TrainConfig.of(rest, roles=method.roles),
        teacher=plain.get("teacher") or None,
        params=params,
    )


def _roles_of(method: Method, key: str, sections: Mapping[str, Any]) -> list[str]:
    """Roles with given parameters that the network of a section is for."""
    return [
        name
        for name, role in method.roles.items()
        if role.init == "given" and key == (name if name in sections else role.network)
    ]


@functools.cache
def every_role() -> frozenset[str]:
    """Names of the roles of all methods."""
    return frozenset(r for name in methods.CATALOGUE for r in methods.build(name).roles)


class Outline(NamedTuple):
    """What is known of a source without its data.

    Attributes:
      sample_shape: shape of one ``x0``.
      num_classes: of the labels, or None.
      cond_features: of embeddings as conditions, or None.
      augment_features: numbers that tell an augmentation beside the condition, or None.
    """

    sample_shape: tuple[int, ...]
    num_classes: int | None
    cond_features: int | None = None
    augment_features: int | None = None


@promotion.usual()
def outline(config: Mapping[str, Any] | ConfigDict) -> Outline:
    """The outline of a card's source; data in a file need not be there."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    section: dict[str, Any] = dict(plain["source"])
    if "sample_shape" in section:
        shape = tuple(section["sample_shape"])
        changes = specs.resolve(section.get("augment"))
        return Outline(
            shape,
            section.get("num_classes"),
            section.get("cond_features"),
            None if changes is None else changes.features,
        )
    source = _make("source", section, words.SOURCES)
    features = getattr(source, "cond_features", None)
    return Outline(tuple(source.sample_shape), source.num_classes, features)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return value


def _taken(
    source: Any, built: Mapping[str, Network], spec: Mapping[str, Any]
) -> dict[str, Any]:
    """What a network takes from the source and the backbone unless the card says so."""
    shape, classes = tuple(source.sample_shape), source.num_classes
    features = getattr(source, "cond_features", None)
    if spec.get("name") in ("mlp", "dit", "unet"):
        if features is not None:
            return {"sample_shape": shape, "cond_features": features}
        return {"sample_shape": shape, "num_classes": classes}
    if spec.get("name") == "policy":
        return {"backbone": built["backbone"], "sample_shape": shape}
    if spec.get("name") == "head":
        cond = None if classes is None else jnp.zeros((1,), jnp.int32)
        known = {"num_classes": classes}
        if features is not None:
            cond, known = jnp.zeros((1, features)), {"cond_features": features}
        taps = networks.taps_shape(built["backbone"], shape, cond)
        return {"features_shape": taps, **known}
    return {}


def _make(kind: str, spec: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """Calls the builder that a section names, with its other values."""
    spec = dict(spec)
    name = spec.pop("name", None)
    if name not in known:
        raise ValueError(unknown(kind, name, known))
    parameters = inspect.signature(known[name]).parameters
    for key in spec:
        if key not in parameters:
            raise ValueError(unknown(f"argument of {kind} {name!r}", key, parameters))
    values = specs.resolve(spec)
    for key, value in values.items():
        check_finite(f"argument {key!r} of {kind} {name!r}", value)
    check_call(f"argument {{}} of {kind} {name!r}", known[name], kwargs=values)
    try:
        return known[name](**values)
    except TypeError as error:
        raise ValueError(
            f"arguments of {kind} {name!r} do not fit ({error}): {values}"
        ) from error


def shipped() -> dict[str, pathlib.Path]:
    """The cards of this library by name, such as ``"digits/scm"``.

    They are ``configs/`` of the repository, which an installed package carries.
    """
    inside = pathlib.Path(__file__).parents[1]
    folders = (inside / "configs", inside.parent / "configs")
    folder = next((f for f in folders if f.is_dir()), folders[0])
    files = sorted(folder.glob("*/*.py"))
    return {f"{p.parent.name}/{p.stem}": p for p in files if p.stem != "__init__"}


def headline(path: pathlib.Path) -> str:
    """The first line of a card's docstring; nothing of it is executed."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def locate(path: str | pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """The file of a card, and the text for its ``get_config``, or None.

    Args:
      path: see `load`.

    Raises:
      ValueError: if there is no such card, with the near ones.
    """
    text = str(path)
    where, found, variant = text.partition(".py:")
    if found or text.endswith(".py"):
        path = pathlib.Path(f"{where}.py" if found else text)
    else:
        name, found, variant = text.partition(":")
        path = shipped().get(name, pathlib.Path(name))
    if not path.is_file():
        # In the same folder the names alone: a long path would make all of them near.
        own = [p.name for p in path.parent.glob("*.py") if p.stem != "__init__"]
        name = path.with_suffix("").as_posix().rpartition("configs/")[2]
        near = difflib.get_close_matches(path.name, own, 3, 0.6)
        near = near or difflib.get_close_matches(name, shipped(), 3, 0.6)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"no card at {path}: it is neither a file nor the name of a card of this "
            f"library. {hint}`distilljax configs` lists those."
        )
    return path, variant if found else None


def load(path: str | pathlib.Path) -> ConfigDict:
    """The card of a file, by its ``get_config()``.

    Args:
      path: the file, or the name of a card of this library (``"digits/scm"``, see
        `shipped`); ``card.py:text`` and ``name:text`` call ``get_config("text")``.

    Raises:
      ValueError: if there is no such card, or it defines no ``get_config`` that fits.
    """
    path, variant = locate(path)
    spec = importlib.util.spec_from_file_location(f"distilljax_card_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} defines no get_config()")
    arguments = () if variant is None else (variant,)
    if len(arguments) > len(inspect.signature(module.get_config).parameters):
        raise ValueError(f"{path} has one card alone: leave {':' + variant!r} out")
    found = module.get_config(*arguments)
    if isinstance(found, ConfigDict):
        return found
    if not isinstance(found, Mapping):
        raise ValueError(
            f"get_config() of {path} must return a card, as cards.card(...) makes it, "
            f"got {type(found).__name__}"
        )
    return ConfigDict(dict(found), convert_dict=True)
