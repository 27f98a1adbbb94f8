"""Networks that the roles of a method want around one backbone.

A card may say the backbone alone. What else a method plays with, a discriminator, the
learned weight of a loss, a student that is told the end of its jump, follows from the
roles: `sections` writes their sections as the cards in ``configs/`` have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distilljax.core.method import Role

Section = Mapping[str, Any]

# Arguments of a network that give it what a role needs. The frequencies of a guidance
# scale are LCM's.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "second_time": {"second_time": True},
    "guidance": {"guidance": (0.1, 1000.0, 128)},
}
# Networks that are made around a backbone, and by which function.
_MADE = {"discriminator": "head", "log_weight": "log_weight", "policy": "policy"}
# Networks whose taps keep the places of what they see.
_IMAGE_NETWORKS = ("dit", "unet")


def sections(
    roles: Mapping[str, Role],
    given: Mapping[str, Section],
    *,
    head: str | None = None,
) -> dict[str, Section]:
    """The sections of a card's networks, those that it leaves out filled in.

    Args:
      roles: of the method.
      given: sections by key; one that is there stays as it is.
      head: see `beside`.

    Returns:
      Sections by key, those of `beside` and `copies`.
    """
    return copies(roles, beside(roles, given, head=head))


def beside(
    roles: Mapping[str, Role],
    given: Mapping[str, Section],
    *,
    head: str | None = None,
) -> dict[str, Section]:
    """Sections with the networks of other kinds that a method plays with.

    Args:
      roles: of the method.
      given: sections by key.
      head: kind of the discriminators, see `networks.head`; default the release's on an
        image network (`Role.arguments`), the small pooled one on an mlp.

    Returns:
      Sections by key; roles that want unlike networks of one key have them under their
      own names. Networks that no rule makes (a reward) are still left out, and
      everything is if there is no backbone.
    """
    out = dict(given)
    if "backbone" not in out:
        return out
    for name, role in roles.items():
        key = role.network
        if key not in _MADE or name in given or key in given:
            continue
        section: dict[str, Any] = {"name": _MADE[key]}
        if head is None and out["backbone"].get("name") in _IMAGE_NETWORKS:
            section |= role.arguments
        elif head is not None and role.arguments:
            section |= {"kind": head}
        if key == "discriminator" and "second_time" in role.needs:
            section |= _ARGUMENTS["second_time"]
        if out.setdefault(key, section) != section:
            out[name] = section
    return out


def copies(
    roles: Mapping[str, Role], given: Mapping[str, Section]
) -> dict[str, Section]:
    """Sections with those of roles that are told more than the backbone is.

    A role on the backbone gets a network of its own where it needs the end of a jump
    (``second_time``) or a guidance scale; what follows it (a target) gets the same.

    Args:
      roles: of the method.
      given: sections by key.

    Returns:
      Sections by key.
    """
    out = dict(given)
    if "backbone" not in out:
        return out
    backbone = out["backbone"]
    for name, role in roles.items():
        if name in out or role.network != "backbone":
            continue
        if role.derive is not None or role.follow is not None:
            continue
        own: dict[str, Any] = {}
        for need, arguments in _ARGUMENTS.items():
            if need in role.needs and not backbone.get(need):
                own |= arguments
        if own:
            out[name] = {**backbone, **own}
    for name, role in roles.items():
        followed = None if role.follow is None else out.get(role.follow.of)
        # A target has the parameters of its student.
        if name not in out and role.derive is None and followed is not None:
            out[name] = dict(followed)
    return out
