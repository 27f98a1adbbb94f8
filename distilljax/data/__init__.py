"""Sources of samples and the pipeline that batches them."""

from distilljax.data.degraded import degraded_digits
from distilljax.data.files import npz
from distilljax.data.labels import interleaved_labels, label_counts
from distilljax.data.pipeline import batches
from distilljax.data.sources import (
    ArraySource,
    Mixture,
    Source,
    arrays,
    digits,
    mixture,
    planar_mixture,
)

__all__ = [
    "ArraySource",
    "Mixture",
    "Source",
    "arrays",
    "batches",
    "degraded_digits",
    "digits",
    "interleaved_labels",
    "label_counts",
    "mixture",
    "npz",
    "planar_mixture",
]
