"""Feature extractors: callables from images to vectors, each with a fingerprint."""

from distilljax.evaluation.features.digits import digits_classifier
from distilljax.evaluation.features.extractor import (
    Extracted,
    FeatureExtractor,
    pixels,
    random_convolutions,
)
from distilljax.evaluation.features.inception import inception
from distilljax.evaluation.features.torch_fidelity import torch_fidelity
from distilljax.runtime.errors import unknown

KINDS = {
    "digits": "digits",
    "inception": "inception:PATH",
    "pixels": "pixels",
    "random_convolutions": "random_convolutions or random_convolutions:SEED",
    "torch_fidelity": "torch_fidelity:NAME:PATH",
}


def extractor(text: str) -> FeatureExtractor:
    """An extractor by its text, as on the command line.

    Args:
      text: ``pixels``, ``digits``, ``random_convolutions``,
        ``random_convolutions:SEED``, ``inception:PATH`` or
        ``torch_fidelity:NAME:PATH``.

    Raises:
      ValueError: an unknown name, or one with too few or too many parts.
    """
    name, *parts = text.split(":", 2)
    if name not in KINDS:
        raise ValueError(unknown("features", name, KINDS))
    if name == "pixels" and not parts:
        return pixels()
    if name == "digits" and not parts:
        return digits_classifier()
    if name == "random_convolutions" and len(parts) < 2:
        if parts and not parts[0].isdigit():
            raise ValueError(f"the seed in features {text!r} must be a whole number")
        return random_convolutions(*map(int, parts))
    if name == "inception" and parts:
        return inception(":".join(parts))
    if name == "torch_fidelity" and len(parts) == 2:
        return torch_fidelity(*parts)
    raise ValueError(f"features {text!r} must be written {KINDS[name]}")


__all__ = [
    "KINDS",
    "Extracted",
    "FeatureExtractor",
    "digits_classifier",
    "extractor",
    "inception",
    "pixels",
    "random_convolutions",
    "torch_fidelity",
]
