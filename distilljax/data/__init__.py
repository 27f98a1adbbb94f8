"""Sources of samples and the pipeline that batches them."""

from distilljax.runtime.extras import needed

with needed("distilljax.data"):
    from distilljax.data.array_records import pairs, records, write_records
    from distilljax.data.augmented import Augmentation, Augmented, augmented
    from distilljax.data.counts import interleaved_labels, label_counts
    from distilljax.data.degraded import degraded_digits
    from distilljax.data.files import npz
    from distilljax.data.images import ReadSource, image_folder, mirrored
    from distilljax.data.pipeline import batches
    from distilljax.data.planar import Mixture, curves, mixture, planar_mixture
    from distilljax.data.prepared import tfds
    from distilljax.data.sources import (
        ArraySource,
        Source,
        arrays,
        coloured_digits,
        digits,
    )
    from distilljax.data.without_data import conditions, labels

__all__ = [
    "ArraySource",
    "Augmentation",
    "Augmented",
    "Mixture",
    "ReadSource",
    "Source",
    "arrays",
    "augmented",
    "batches",
    "coloured_digits",
    "conditions",
    "curves",
    "degraded_digits",
    "digits",
    "image_folder",
    "interleaved_labels",
    "label_counts",
    "labels",
    "mirrored",
    "mixture",
    "npz",
    "pairs",
    "planar_mixture",
    "records",
    "tfds",
    "write_records",
]

# Floors that modules here may import.
IMPORTS = ("runtime",)
