"""Cards that share most of their values: digits on a laptop, images on a pod."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from distilljax import methods
from distilljax.experiment import players, specs
from distilljax.experiment.cards import card
from distilljax.experiment.releases import Release
from distilljax.runtime.errors import unknown


def digits_card(
    method: str,
    options: Mapping[str, Any] | None = None,
    *,
    source: str | Mapping[str, Any] = "digits",
    network: Mapping[str, Any] | None = None,
    second_time: bool = False,
    **train: Any,
) -> ConfigDict:
    """A card on the digits with the house's network; see `card`.

    Args:
      method: registry id.
      options: options of its factory.
      source: another source of digits, a name or a section.
      network: arguments of the network.
      second_time: whether the student is told the end time.
      **train: see `card`.
    """
    net = {"name": "mlp", **(network or {})}
    built = _players(method, options, net, second_time, "pooled")
    settings = {
        "log_every": 20,
        "checkpoint": {"every": 500, "keep": 2},
        **train,
    }
    section = {"name": source} if isinstance(source, str) else source
    return card(method, options, source=section, networks=built, **settings)


def _players(
    method: str,
    options: Mapping[str, Any] | None,
    network: Mapping[str, Any],
    second_time: bool,
    head: str | None = None,
) -> dict[str, Any]:
    """Sections of the networks that a method wants around one kind of network."""
    roles = dict(methods.build(method, **specs.resolve(dict(options or {}))).roles)
    if second_time:
        student = roles["student"]
        roles["student"] = student._replace(needs=student.needs | {"second_time"})
    return players.sections(roles, {"backbone": dict(network)}, head=head)


_CIFAR = {"sample_shape": (32, 32, 3), "num_classes": 10}
_LATENT = {"sample_shape": (32, 32, 4), "num_classes": 1000}
_LATENTS = {
    "npz": {"path": "data/imagenet256_latents.npz", "images": False, **_LATENT},
    "records": {"path": "data/imagenet256_latents", **_LATENT},
}
_IMAGENET = {"sample_shape": (64, 64, 3), "num_classes": 1000}
# What the cards of a data set share that is meant for 16 chips: the sources that they
# take it from, the network, and the samples that are held at once.
_POD: dict[str, dict[str, Any]] = {
    "cifar": {
        "sources": {
            "npz": {"path": "data/cifar10.npz", "images": True, **_CIFAR},
            "records": {"path": "data/cifar10", **_CIFAR},
            "tfds": {"dataset": "cifar10", **_CIFAR},
        },
        "network": {"name": "unet", "dtype": "bfloat16"},
        "held": 512,
        "mesh": {"data": 16},
    },
    "latent": {
        "sources": _LATENTS,
        "network": {"name": "dit", "size": "B", "dtype": "bfloat16", "remat": "dots"},
        "held": 256,
        "mesh": {"data": 16},
    },
    "latent_xl": {
        "sources": _LATENTS,
        "network": {"name": "dit", "size": "XL", "dtype": "bfloat16", "remat": "full"},
        "held": 256,
        "mesh": {"fsdp": 16},
        "frozen": {"dtype": "bfloat16"},
    },
    "imagenet64": {
        "sources": {
            "tfds": {"dataset": "imagenet2012", **_IMAGENET},
            "image_folder": {"path": "data/imagenet/train", **_IMAGENET},
            "records": {"path": "data/imagenet64", **_IMAGENET},
        },
        "network": {
            "name": "dit",
            "size": "B",
            "patch": 4,
            "dtype": "bfloat16",
            "remat": "dots",
        },
        "held": 256,
        "mesh": {"data": 16},
    },
}


def pod_card(
    kind: str,
    release: Release,
    options: Mapping[str, Any] | None = None,
    *,
    source: str | None = None,
    network: Mapping[str, Any] | None = None,
    second_time: bool = False,
) -> ConfigDict:
    """A card of a release's recipe on CIFAR-10 or ImageNet for 16 chips; see `card`.

    The batch is the release's, rounded up to a multiple of the chips, and is taken in
    as few microbatches as fit (``accumulate``).

    Args:
      kind: ``cifar``, ``latent``, ``latent_xl`` or ``imagenet64``.
      release: one of `releases`.
      options: options of the method, over the release's.
      source: what the data is read from: ``npz``, ``records``, ``tfds`` or
        ``image_folder``; default the first that the kind knows.
      network: arguments of the network, over the kind's and the release's.
      second_time: whether the student is told the end time.

    Raises:
      ValueError: on a source that the kind does not know.
    """
    shared = dict(_POD[kind])
    known, held = shared.pop("sources"), shared.pop("held")
    name = source or next(iter(known))
    if name not in known:
        raise ValueError(unknown(f"source of the {kind} cards", name, known))
    net = {**shared.pop("network"), **release.network, **(network or {})}
    options = {**release.options, **(options or {})}
    chips = math.prod(shared["mesh"].values())
    parts = -(-release.batch_size // held)
    return card(
        release.method,
        options,
        source={"name": name, **known[name], **release.data},
        networks=_players(release.method, options, net, second_time),
        cycles=release.cycles,
        batch_size=-(-release.batch_size // (parts * chips)) * parts * chips,
        default={**release.default, "accumulate": parts},
        **release.roles,
        **shared,
    )
