"""Judging runs: every sampler gets the same conditions and noise seeds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distilljax import evaluation
from distilljax.experiment.api import Fitted
from distilljax.sampling import generation

SEEDS = (0, 1, 2)
STEPS = (1, 2, 4)
TEACHER_NFE = 50


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Draws as many samples as the data has, with its labels, and compares.

    Attributes:
      x0: the data, images ``[N, H, W, C]`` in [-1, 1].
      labels: its classes ``[N]``.
      seeds: noise seeds; statistics are means over them.
    """

    x0: np.ndarray
    labels: np.ndarray
    seeds: Sequence[int] = SEEDS

    @classmethod
    def of(cls, source: Any, seeds: Sequence[int] = SEEDS) -> Judge:
        """The judge of a whole source."""
        data = source.take(np.arange(len(source)))
        return cls(data["x0"], data["cond"].astype(np.int32), seeds)

    @functools.cached_property
    def classifier(self) -> evaluation.PixelClassifier:
        """Knows the data's classes."""
        return evaluation.PixelClassifier.fit(self.x0, self.labels)

    def draw(self, run: Fitted, sampler: generation.Sampler) -> list[np.ndarray]:
        """Samples ``[N, H, W, C]`` of every seed, clipped to [-1, 1]."""
        options = {"labels": self.labels, "num_classes": run.num_classes}
        return _drawn(run, sampler, self.seeds, len(self.labels), options)

    def statistics(self, samples_by_seed: Sequence[np.ndarray]) -> dict[str, Any]:
        """See `evaluation.summarise`."""
        return evaluation.summarise(
            samples_by_seed, self.labels, self.x0, self.labels, self.classifier
        )


@dataclasses.dataclass(frozen=True, eq=False)
class RestorationJudge:
    """Restores images that were held out, and compares with the sharp ones.

    Attributes:
      data: fields of the images held out: ``x0``, ``cond``, ``degraded``, ``label``.
      classifier: knows the classes of the training images.
      seeds: noise seeds; statistics are means over them.
    """

    data: Mapping[str, np.ndarray]
    classifier: evaluation.Classifier
    seeds: Sequence[int] = SEEDS

    @classmethod
    def of(
        cls, train: Any, held_out: Any, seeds: Sequence[int] = SEEDS
    ) -> RestorationJudge:
        """The judge of two parts of a source, see `data.degraded_digits`."""
        known = train.take(np.arange(len(train)))
        classifier = evaluation.PixelClassifier.fit(known["x0"], known["label"])
        return cls(held_out.take(np.arange(len(held_out))), classifier, seeds)

    def draw(self, run: Fitted, sampler: generation.Sampler) -> list[np.ndarray]:
        """Restorations ``[N, H, W, C]`` of every seed, clipped to [-1, 1]."""
        field = run.method.sampling.start
        options = {"cond": self.data["cond"]}
        if field is not None:
            options["start"] = self.data[field]
        return _drawn(run, sampler, self.seeds, len(self.data["x0"]), options)

    def statistics(self, samples_by_seed: Sequence[np.ndarray]) -> dict[str, float]:
        """``psnr`` and ``frechet`` against the sharp images, ``accuracy``; means."""
        sharp, labels = self.data["x0"], self.data["label"]
        flat = sharp.reshape(len(sharp), -1)
        rows = [
            (
                evaluation.psnr(x, sharp),
                evaluation.frechet_distance(x.reshape(flat.shape), flat),
                self.classifier.accuracy(x, labels),
            )
            for x in samples_by_seed
        ]
        means = np.mean(rows, axis=0).tolist()
        return dict(zip(("psnr", "frechet", "accuracy"), means, strict=True))


def _drawn(
    run: Fitted,
    sampler: generation.Sampler,
    seeds: Sequence[int],
    batch_size: int,
    options: Mapping[str, Any],
) -> list[np.ndarray]:
    # One jit for all seeds; generate() would build one each.
    program = sampler if hasattr(sampler, "lower") else jax.jit(sampler)
    return [
        np.clip(
            generation.generate(
                program,
                run.params,
                sample_shape=run.sample_shape,
                seed=seed,
                batch_size=batch_size,
                progress=False,
                **options,
            ),
            -1.0,
            1.0,
        )
        for seed in seeds
    ]
