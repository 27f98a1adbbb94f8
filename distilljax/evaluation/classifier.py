"""A classifier on pixels that judges whether samples show their label."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation.inputs import check_images, check_labels
from distilljax.runtime.extras import needed


class Classifier(Protocol):
    """Anything that scores images against labels."""

    def accuracy(self, x: ArrayLike, labels: ArrayLike) -> float: ...


@dataclasses.dataclass(frozen=True)
class PixelClassifier:
    """Support vector machine (RBF kernel) on pixels; make one with `fit`.

    Attributes:
      model: the fitted scikit-learn estimator.
      shape: ``(H, W, C)`` of the images it was fitted to.
      classes: number of classes; labels run from 0 to ``classes - 1``.
    """

    model: Any
    shape: tuple[int, ...]
    classes: int

    @classmethod
    def fit(cls, x: ArrayLike, labels: ArrayLike) -> PixelClassifier:
        """Fits an ``SVC(gamma="scale", C=10)`` to real images.

        Args:
          x: images ``[N, H, W, C]`` in [-1, 1].
          labels: classes ``[N]``, integers from 0, at least two of them.

        Returns:
          The classifier. Fitting is deterministic.

        Raises:
          ValueError: bad images or labels, or a single class.
          ModuleNotFoundError: scikit-learn is not installed.
        """
        images = check_images("x", x)
        targets = check_labels("labels", labels, len(images))
        if len(np.unique(targets)) < 2:
            raise ValueError(
                f"labels must name at least two classes, got only {targets[0]}; pass "
                "data of every class that is to be told apart."
            )
        with needed("PixelClassifier"):
            from sklearn.svm import SVC
        model = SVC(gamma="scale", C=10).fit(images.reshape(len(images), -1), targets)
        return cls(model, images.shape[1:], int(targets.max()) + 1)

    def predict(self, x: ArrayLike) -> NDArray[np.int32]:
        """Most likely class ``[N]`` of images ``[N, H, W, C]`` in [-1, 1]."""
        images = check_images("x", x, self.shape)
        return self.model.predict(images.reshape(len(images), -1)).astype(np.int32)

    def accuracy(self, x: ArrayLike, labels: ArrayLike) -> float:
        """Share of images that are recognised as their label.

        Args:
          x: images ``[N, H, W, C]`` in [-1, 1].
          labels: classes ``[N]`` that the images should show.

        Returns:
          A number in [0, 1].

        Raises:
          ValueError: bad images or labels.
        """
        predicted = self.predict(x)
        targets = check_labels("labels", labels, len(predicted), self.classes)
        return float(np.mean(predicted == targets))
