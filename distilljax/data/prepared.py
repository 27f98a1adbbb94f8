"""Data sets of TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from distilljax.data.augmented import Augmentation, augmented
from distilljax.data.images import ReadSource, check_image_shape, fitted, mirrored
from distilljax.data.sources import Sample, Source
from distilljax.runtime import words
from distilljax.runtime.errors import unknown
from distilljax.runtime.extras import needed


@words.source
def tfds(
    dataset: str,
    *,
    sample_shape: tuple[int, ...],
    split: str = "train",
    data_dir: str = "",
    x0: str = "image",
    cond: str = "label",
    num_classes: int | None = None,
    flip: bool = False,
    augment: Augmentation | None = None,
    read_threads: int = 0,
) -> Source:
    """A prepared data set of TensorFlow Datasets, by `tfds.data_source`.

    It has to be prepared once as ArrayRecord, ``tfds build cifar10
    --file_format=array_record``, which needs TensorFlow; reading it needs none.

    Args:
      dataset: name and, if wanted, config and version: ``cifar10``, ``imagenet2012``.
      sample_shape: images ``(H, W, C)``, resized and centre cropped to it; samples of
        any other feature must have it.
      split: which part, slices too: ``train``, ``train[:90%]``.
      data_dir: where it was prepared; default TFDS's own folder. In a bucket too.
      x0: feature of the samples: an image, or floats (latents).
      cond: feature of labels or embeddings; empty for none.
      num_classes: number of labels; default the data set's.
      flip: adds the mirror images, see `mirrored`.
      augment: EDM's augmentation, see `augmented`.
      read_threads: threads that decode; 0 takes one a processor.

    Returns:
      The source, fields ``x0`` and ``cond``.

    Raises:
      ValueError: if the data set, split or feature is not there.
    """
    with needed("data.tfds"):
        import tensorflow_datasets

    where = os.fspath(data_dir) if data_dir else None
    try:
        builder: Any = tensorflow_datasets.builder(dataset, data_dir=where)
        splits = builder.info.splits
    except tensorflow_datasets.core.DatasetNotFoundError:
        raise ValueError(
            f"no data set {dataset!r} among those that tensorflow_datasets knows or "
            f"that lie in {where or 'its default folder'}; check name and data_dir"
        ) from None
    if not splits:
        raise ValueError(
            f"data set {dataset!r} is not prepared in {builder.data_dir}: run `tfds "
            f"build {dataset} --file_format=array_record --data_dir=...` once where "
            "TensorFlow is installed, and pass that data_dir"
        )
    try:
        rows = builder.as_data_source(split=split)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"data set {dataset!r}, split {split!r}: {error} Splits: "
            f"{', '.join(sorted(splits))}; files must be array_record"
        ) from error
    features: Any = builder.info.features
    for argument, name in (("x0", x0), ("cond", cond)):
        if name and name not in features:
            raise ValueError(unknown(f"feature as {argument}", name, features))
    is_image = isinstance(features[x0], tensorflow_datasets.features.Image)
    shape = check_image_shape(sample_shape) if is_image else tuple(sample_shape)
    classes = getattr(features[cond], "num_classes", None) if cond else None
    if num_classes is not None and (classes is None or classes > num_classes):
        raise ValueError(
            f"num_classes={num_classes}: {dataset} has "
            + ("no labels" if classes is None else f"{classes} classes")
        )
    names = _names(features[cond]) if cond else None
    known = builder.info.full_name
    source = ReadSource(
        functools.partial(_read, rows, x0, cond, shape, is_image),
        len(rows),
        shape,
        classes if num_classes is None else num_classes,
        ("x0", "cond") if cond else ("x0",),
        f"{known}[{split}]{x0},{cond},{shape}:{len(rows)}",
        f"tfds {known}",
        read_threads,
        names if num_classes in (None, classes) else None,
    )
    return augmented(mirrored(source) if flip else source, augment)


def _names(feature: Any) -> tuple[str, ...] | None:
    """Names of a feature's classes, None where they are the numbers of the labels."""
    names = tuple(getattr(feature, "names", None) or ())
    return None if names == tuple(map(str, range(len(names)))) else names


def _read(
    rows: Any,
    x0: str,
    cond: str,
    shape: tuple[int, ...],
    is_image: bool,
    index: int,
) -> Sample:
    with needed("reading images"):
        from PIL import Image

    row = rows[index]
    if is_image:
        pixels = row[x0]
        grey = pixels.shape[-1] == 1
        image = Image.fromarray(pixels[..., 0] if grey else pixels)
        assert len(shape) == 3
        sample: Sample = {"x0": fitted(image, shape)}
    else:
        sample = {"x0": np.asarray(row[x0], np.float32)}
        if sample["x0"].shape != shape:
            raise ValueError(
                f"samples must have shape {shape}, got {sample['x0'].shape}"
            )
    if cond:
        value = np.asarray(row[cond])
        whole = value.dtype.kind in "iu"
        sample["cond"] = value.astype("int32" if whole else "float32")
    return sample
