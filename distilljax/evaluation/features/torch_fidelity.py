"""The extractors of torch-fidelity, with weights that the user gives."""

from __future__ import annotations

import hashlib
import importlib
import os
import pathlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilljax.evaluation.features.extractor import (
    Extracted,
    FeatureExtractor,
    need_images,
)
from distilljax.runtime.errors import unknown

_CHUNK_BYTES = 2**24


def torch_fidelity(name: str, weights: str | os.PathLike) -> FeatureExtractor:
    """An extractor of torch-fidelity, run by torch.

    Args:
      name: as torch-fidelity registers it: ``inception-v3-compat``, ``clip-vit-b-32``,
        ``dinov2-vit-b-14``, ...
      weights: path of its weights. torch-fidelity reads them with pickle: give it only
        files that you trust. Nothing is downloaded.

    Returns:
      The extractor. Images are rounded to 8 bit, one channel stands for three equal
      ones; logits are there for Inception alone.

    Raises:
      ModuleNotFoundError: torch-fidelity is not installed; it is in the extra ``eval``.
      ValueError: an unknown name, or no file at `weights`.
    """
    try:
        torch = importlib.import_module("torch")
        registry = importlib.import_module("torch_fidelity.registry")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"features 'torch_fidelity:{name}' need torch and torch-fidelity: "
            "pip install 'distilljax[eval]'"
        ) from error
    known = registry.FEATURE_EXTRACTORS_REGISTRY
    if name not in known:
        raise ValueError(unknown("extractor of torch-fidelity", name, known))
    path = pathlib.Path(weights)
    if not path.is_file():
        raise ValueError(f"no weights at {path}: give the path of a file that is there")
    kind = known[name]
    layers = [kind.get_default_feature_layer_for_metric("fid")]
    if "logits_unbiased" in kind.get_provided_features_list():
        layers.append("logits_unbiased")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = kind(name, layers, feature_extractor_weights_path=str(path)).to(device)

    def apply(params: Any, x: NDArray[np.float32]) -> Extracted:
        need_images(name, x.shape)
        levels = np.rint(x * 127.5 + 127.5).astype(np.uint8)
        levels = np.broadcast_to(levels, (*x.shape[:3], 3)).transpose(0, 3, 1, 2)
        with torch.no_grad():
            given = torch.from_numpy(np.ascontiguousarray(levels)).to(device)
            return Extracted(*(out.cpu().numpy() for out in network(given)))

    return FeatureExtractor(
        f"torch_fidelity:{name}",
        _digest(name, path),
        apply,
        traced=False,
        batch_size=64,
    )


def _digest(name: str, path: pathlib.Path) -> str:
    digest = hashlib.blake2b(f"torch_fidelity:{name}".encode(), digest_size=12)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
