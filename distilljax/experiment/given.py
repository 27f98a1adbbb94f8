"""Networks that a config does not build: named by import path, or the end of a run.

Rewards, weak teachers, decoders and feature networks are a user's own. In a config:

    networks={
        "backbone": {"name": "mlp"},
        "reward": {"name": "import", "call": "my_rewards:brightness", "scale": 2.0},
        "weak_teacher": {"name": "run", "folder": "runs/weak"},
    }
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from distilljax.core.binding import Network
from distilljax.runtime.errors import unknown


class Given(NamedTuple):
    """A network that comes with its parameters."""

    network: Network
    params: Any


def imported(call: str, **arguments: Any) -> Given:
    """Calls a function of a module.

    Args:
      call: ``"package.module:function"``; modules of the current folder are found too.
        The function returns a `Network`, whose ``init`` then makes the parameters, or
        ``(network, parameters)``.
      **arguments: of the function.

    Raises:
      ValueError: naming what is not there or came instead.
    """
    module, mark, name = str(call).partition(":")
    if not (module and mark and name):
        raise ValueError(
            f"call must be 'package.module:function', got {call!r}; for example "
            "'my_rewards:brightness'"
        )
    here = os.getcwd()
    sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"cannot import {module!r} of {call!r} ({error}); install it, or run from "
            f"the folder that holds it (now {here})"
        ) from error
    except ImportError as error:
        raise ValueError(f"{module!r} of {call!r} fails: {error}") from error
    finally:
        sys.path.remove(here)
    if not callable(getattr(found, name, None)):
        known = [key for key, value in vars(found).items() if callable(value)]
        raise ValueError(unknown(f"function of {module!r}", name, known))
    made = getattr(found, name)(**arguments)
    if isinstance(made, Network):
        return Given(made, made.init(jax.random.key(0)))
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Network):
        return Given(*made)
    raise ValueError(
        f"{call!r} must return a distilljax.Network or (network, parameters), got "
        f"{type(made).__name__}"
    )


def of_run(folder: str) -> Given:
    """The network of a run with the parameters at its end.

    Args:
      folder: run folder.
    """
    from distilljax.experiment import api

    found = api.load(folder)
    return Given(found.network, found.params)


KINDS = {"import": imported, "run": of_run}


def is_given(section: Mapping[str, Any]) -> bool:
    """Whether a section of a config is one of these."""
    return section.get("name") in KINDS


def make(key: str, section: Mapping[str, Any]) -> Given:
    """The network of a section.

    Args:
      key: of the section, for errors.
      section: ``name`` and arguments.
    """
    arguments = dict(section)
    kind = arguments.pop("name")
    try:
        return KINDS[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"networks.{key}: {error}") from error
