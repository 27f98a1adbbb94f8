"""Packages that an extra installs, and what is said where one is missing.

``pip install distilljax`` brings jax and numpy, which losses, paths, samplers and
methods need; networks, data, training and reports need ``distilljax[train]``.
"""

from __future__ import annotations

from types import TracebackType

_TRAIN = (
    "absl",
    "chex",
    "etils",
    "flax",
    "grain",
    "matplotlib",
    "ml_collections",
    "optax",
    "orbax",
    "PIL",
    "sklearn",
    "tensorflow_datasets",
    "tqdm",
)
# Names of imports -> the extra that brings their package.
EXTRAS = {
    **dict.fromkeys(_TRAIN, "train"),
    "gcsfs": "gcs",
    "s3fs": "s3",
    "safetensors": "eval",
    "tensorboardX": "tensorboard",
    "torch": "eval",
    "torch_fidelity": "eval",
    "wandb": "wandb",
}


def missing(error: ModuleNotFoundError, what: str) -> ModuleNotFoundError:
    """The error that says how to install what is missing.

    Args:
      error: of an import.
      what: who needs the package.

    Returns:
      One with the extra's name; the error itself where no extra has the package.
    """
    name = error.name or ""
    extra = EXTRAS.get(name.split(".")[0])
    if extra is None:
        return error
    return ModuleNotFoundError(
        f"{what} needs the package {name.split('.')[0]}, which is not installed: "
        f"pip install 'distilljax[{extra}]'",
        name=name,
    )


class needed:
    """Context of imports, whose errors then name the extra to install."""

    def __init__(self, what: str):
        """Takes who needs the packages, as the message begins."""
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, ModuleNotFoundError):
            told = missing(error, self._what)
            if told is not error:
                raise told from error
