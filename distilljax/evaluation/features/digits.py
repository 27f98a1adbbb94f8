"""A small classifier of the 8x8 digits, for features that mean something there.

``python -m distilljax.evaluation.features.train_digits`` made the weights that ship
beside this file.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.evaluation.features.extractor import (
    Extracted,
    FeatureExtractor,
    fingerprint,
)

WEIGHTS = pathlib.Path(__file__).with_name("digits.npz")
SHAPES = {
    "conv0": (3, 3, 1, 12),
    "conv1": (3, 3, 12, 24),
    "dense0": (384, 64),
    "dense1": (64, 10),
}


def apply(params: Mapping[str, Any], x: jax.Array) -> Extracted:
    if x.shape[1:] != (8, 8, 1):
        raise ValueError(
            "features 'digits' need images [n, 8, 8, 1] of the digits data, got shape "
            f"{tuple(x.shape)}; use 'pixels', 'random_convolutions' or 'inception'."
        )
    for i in range(2):
        x = jax.lax.conv_general_dilated(
            x,
            params[f"conv{i}.kernel"],
            (1 + i, 1 + i),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        x = jax.nn.relu(x + params[f"conv{i}.bias"])
    x = x.reshape(len(x), -1)
    dense = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    x = jax.nn.relu(dense(x, params["dense0.kernel"]) + params["dense0.bias"])
    return Extracted(x, dense(x, params["dense1.kernel"]) + params["dense1.bias"])


def digits_classifier() -> FeatureExtractor:
    """Features ``[n, 64]`` and logits ``[n, 10]`` of a classifier of the 8x8 digits.

    Two 3x3 convolutions (12 and 24 channels) and two dense layers; the features are
    the rectified output before the last one. The weights ship with the library and
    recognise 98.3 % of the fifth of the digits that their training did not see.
    """
    with np.load(WEIGHTS) as found:
        params = dict(found)
    return FeatureExtractor("digits", fingerprint("digits", params), apply, params)
