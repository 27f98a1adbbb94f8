"""A fitted teacher among the networks of its student's run.

The teacher is applied by the network that it was trained with, which need not be the
backbone of its student's card: another path, kind of prediction or compute dtype is
right by itself. Roles that start from its parameters are another thing: theirs must
fit, and mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from distilljax.core.binding import Network
from distilljax.core.method import Method
from distilljax.training.claim import differing
from distilljax.training.roles import network_of
from distilljax.training.state import leaves
from distilljax.training.versions import read_record

if TYPE_CHECKING:
    from distilljax.experiment.api import Fitted

_SHOWN = 4


def with_teacher(
    method: Method,
    networks: Mapping[str, Network],
    teacher: Fitted,
    given: Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
) -> dict[str, Network]:
    """The networks of a run with the teacher's own for its role.

    Args:
      method: of the student.
      networks: by role or key; one named ``teacher`` stays.
      teacher: the fitted teacher.
      given: parameters given by role; those roles do not start from the teacher.
      card: record of the student's run, for messages.

    Returns:
      Networks by role or key.

    Raises:
      ValueError: if the teacher is not finished; if its network is not the one that a
        role needs which starts from its parameters, saying what both are.
    """
    if teacher.cycle is not None:
        raise ValueError(
            f"the teacher in {teacher.folder} is not finished, its newest checkpoint "
            f"is of cycle {teacher.cycle}: train that run to its end first, by the "
            "same call"
        )
    out = dict(networks)
    role = method.roles.get("teacher")
    if role is not None and role.follow is None:
        out.setdefault("teacher", teacher.network)
    for name, player in method.roles.items():
        starts = player.init == "teacher" and name not in given
        if starts and player.derive is None:
            _check_start(method, name, out, teacher, card)
    return out


def _check_start(
    method: Method,
    name: str,
    networks: Mapping[str, Network],
    teacher: Fitted,
    card: Mapping[str, Any] | None,
) -> None:
    """Refuses a role that cannot start from the teacher's parameters."""
    network = network_of(method.roles, name, networks)
    own = leaves(jax.eval_shape(network.init, jax.random.key(0)))
    came = leaves(teacher.params)
    shapes = {
        leaf: (tuple(value.shape), tuple(own[leaf].shape) if leaf in own else None)
        for leaf, value in came.items()
    }
    wrong = [leaf for leaf, (there, here) in shapes.items() if there != here]
    # An exact teacher has no parameters that could mean something else.
    meant = _meant(network, teacher.network) if came else ""
    if not wrong and not meant:
        return
    if wrong:
        there, here = shapes[wrong[0]]
        meant = (
            f"leaf {wrong[0]!r} has shape {there} there and "
            f"{'is not' if here is None else f'shape {here}'} here, and so do "
            f"{len(wrong)} of the teacher's {len(came)} leaves"
        )
    where = f" in {teacher.folder}" if teacher.folder is not None else ""
    sections = _sections(teacher, card)
    said = f". Their configs differ (teacher -> here): {sections}" if sections else ""
    raise ValueError(
        f"role {name!r} starts from role 'teacher', whose network is another one: "
        f"{teacher.network.name!r} of {_size(came)}{where}, and {name!r} has "
        f"{network.name!r} of {_size(own)}; {meant}{said}. Give the config the "
        f"teacher's network, or {name!r} parameters of its own, params={{{name!r}: "
        "...}"
    )


def _meant(own: Network, of_teacher: Network) -> str:
    """How the same parameters would mean something else; empty if they do not."""
    if own.path is None or of_teacher.path is None:
        return ""
    pair = [
        f"predicts {getattr(n.prediction, 'name', n.prediction)} on {n.path!r}"
        for n in (of_teacher, own)
    ]
    same = own.path == of_teacher.path and own.prediction == of_teacher.prediction
    return "" if same else f"the teacher {pair[0]}, {own.name!r} {pair[1]}"


def _size(named: Mapping[str, Any]) -> str:
    count = sum(int(leaf.size) for leaf in named.values())
    return f"{count / 1e6:.3g} M parameters"


def _sections(teacher: Fitted, card: Mapping[str, Any] | None) -> str:
    """Where the backbones of two cards differ, in words; empty if either is unknown."""
    if teacher.folder is None or not (teacher.folder / "config.json").is_file():
        return ""
    there = read_record(teacher.folder / "config.json").get("card", {})
    here = (card or {}).get("card", {})
    # A record is JSON, where a tuple is a list.
    here = json.loads(json.dumps(here, default=str))
    both = [c.get("networks", {}).get("backbone") for c in (there, here)]
    if not all(isinstance(section, Mapping) for section in both):
        return ""
    found = differing(both[0], both[1], "networks.backbone")
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more
