"""Conditions of image networks: a vector, an image, or a dict of several.

A vector condition is a label or an embedding; an image condition is joined to the state
along the channels. A network with one kind takes it plainly, one with several takes
``{"label" | "embedding": ..., "image": ...}``. Missing conditions are null conditions.

A network built for augmented data also takes ``"augment"`` in the dict: numbers that
say how the sample was changed (`data.augmented`). Left out they are zeros, so that a
plain condition stands for an unchanged sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distilljax.networks.embeddings import ConditionEmbedding, null_condition

Array = jax.Array


class Conditions(nnx.Module):
    """What a condition adds: a vector, and channels beside the state.

    Args:
      size: features of the vector.
      num_classes: for labels ``[B]``.
      features: ``d`` of embeddings ``[B, d]``.
      image_channels: ``c`` of images ``[B, h, w, c]``; smaller ones are enlarged to the
        state's size by repetition.
      augment_features: ``a`` of the numbers of an augmentation, ``[B, a]``; a linear
        layer without bias, zero at first.
      std: see `LabelEmbedding`.
      rngs: initialisation keys.
    """

    def __init__(
        self,
        size: int,
        *,
        num_classes: int | None = None,
        features: int | None = None,
        image_channels: int | None = None,
        augment_features: int | None = None,
        std: float = 0.02,
        rngs: nnx.Rngs,
    ):
        self.vector = ConditionEmbedding(
            size, num_classes=num_classes, features=features, std=std, rngs=rngs
        )
        self.key = vector_key(num_classes, features)
        self.image_channels = image_channels or 0
        self.augment_features = augment_features or 0
        if augment_features:
            self.augment = nnx.Linear(
                augment_features,
                size,
                use_bias=False,
                kernel_init=nnx.initializers.zeros,
                rngs=rngs,
            )

    def __call__(self, cond: Any, x: Array) -> tuple[Array | float, tuple[Array, ...]]:
        """``(vector [B, size] or 0, () or (image [B, H, W, c],))`` beside a state.

        Raises:
          ValueError: on a condition that is not what the network was built for.
        """
        cond, changes = self._unaugmented(cond)
        vector, image = self._split(cond)
        added = self.vector(vector)
        if changes is not None:
            if changes.shape != (x.shape[0], self.augment_features):
                raise ValueError(
                    f"the condition's 'augment' must be [B, {self.augment_features}] "
                    f"numbers, got {changes.shape}; build the network with "
                    "augment_features= of the data's augmentation"
                )
            added = added + self.augment(changes)
        if not self.image_channels:
            return added, ()
        shape = (*x.shape[:3], self.image_channels)
        if image is None:
            return added, (jnp.zeros(shape, x.dtype),)
        rows, columns = (
            a // max(b, 1) for a, b in zip(shape[1:3], image.shape[1:3], strict=True)
        )
        if image.ndim == 4:
            image = image.repeat(max(rows, 1), 1).repeat(max(columns, 1), 2)
        if image.shape != shape:
            raise ValueError(
                f"the condition's image must be {shape} or a whole part of it along "
                f"height and width, got {image.shape}"
            )
        return added, (image.astype(x.dtype),)

    def _unaugmented(self, cond: Any) -> tuple[Any, Any]:
        """The condition without the numbers of an augmentation, and those."""
        if not isinstance(cond, dict) or "augment" not in cond:
            return cond, None
        if not self.augment_features:
            raise ValueError(
                "cond tells an augmentation, which this network was not built for; "
                "build it with augment_features=, or take augment out of the source"
            )
        rest = {k: v for k, v in cond.items() if k != "augment"}
        if self.key is not None and self.image_channels:
            return rest, cond["augment"]
        own = "image" if self.image_channels else self.key
        if set(rest) - {own}:
            raise ValueError(
                f"beside 'augment' cond must hold {own!r} alone, got {sorted(rest)}"
            )
        return rest.get(own), cond["augment"]

    def _split(self, cond: Any) -> tuple[Any, Any]:
        if self.key is None or not self.image_channels:
            return (None, cond) if self.image_channels else (cond, None)
        if cond is None:
            return None, None
        if not isinstance(cond, dict) or set(cond) - {self.key, "image"}:
            got = sorted(cond) if isinstance(cond, dict) else type(cond).__name__
            raise ValueError(
                f"cond must be a dict with {self.key!r} and 'image', got {got}"
            )
        return cond.get(self.key), cond.get("image")


def vector_key(num_classes: int | None, features: int | None) -> str | None:
    """How a dict of conditions calls the vector."""
    if num_classes is not None:
        return "label"
    return None if features is None else "embedding"


def vector_of(cond: Any, num_classes: int | None, features: int | None) -> Any:
    """The vector among conditions that hold one, for networks without an image."""
    key = vector_key(num_classes, features)
    if key is None:
        return None
    return cond.get(key) if isinstance(cond, dict) else cond


def null_conditions(
    num_classes: int | None = None,
    features: int | None = None,
    image_channels: int | None = None,
    augment_features: int | None = None,
) -> Callable[[Any], Any] | None:
    """The null condition that goes with `Conditions`, as a function.

    With a vector and an image only the vector becomes null: guidance of restoration and
    editing models keeps the image. The numbers of an augmentation stay.
    """
    plain = _null_conditions(num_classes, features, image_channels)
    key = vector_key(num_classes, features)
    if not augment_features or plain is None:
        return plain
    own = key or "image"

    def null(cond: Any) -> Any:
        if not isinstance(cond, dict) or "augment" not in cond:
            return plain(cond)
        if key is not None and image_channels:
            return plain(cond)
        return {**cond, own: plain(cond.get(own))}

    return null


def _null_conditions(
    num_classes: int | None, features: int | None, image_channels: int | None
) -> Callable[[Any], Any] | None:
    vector = null_condition(num_classes, features)
    key = vector_key(num_classes, features)
    if not image_channels:
        return vector
    if vector is None or key is None:
        return lambda cond: None if cond is None else jnp.zeros_like(cond)

    def null(cond: Any) -> Any:
        return None if cond is None else {**cond, key: vector(cond[key])}

    return null
