"""Loggers of other projects: TensorBoard and Weights & Biases, both optional.

Their packages are extras and imported when a run opens them, never before.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"logging={extra!r} needs the package {name}: pip install "
            f"'distilljax[{extra}]', or leave {extra} out of logging",
            name=name,
        ) from None


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder.

    A continued run writes to the same folder and hides its events of later cycles.
    """

    def __init__(self, folder: epath.Path, step: int, record: Mapping[str, Any]):
        """Opens the folder for a run that continues after cycle ``step``."""
        package = _package("tensorboardX", "tensorboard")
        # The suffix keeps two files apart that are opened within a second.
        self._writer = package.SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=step + 1,
            filename_suffix=f".{step}",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds scalars; a thread of the package writes them."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds images."""
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, whose id is kept in ``wandb_id`` of the run folder.

    The environment variables of the package hold (``WANDB_MODE``, ``WANDB_ENTITY``,
    ``WANDB_PROJECT``; the project is ``distilljax`` without it). W&B keeps the records
    that it has: those that a continued run repeats, equal ones, it ignores.
    """

    def __init__(self, folder: epath.Path, step: int, record: Mapping[str, Any]):
        """Starts the run of W&B, or continues it."""
        self._package = _package("wandb", "wandb")
        path = folder / "wandb_id"
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        self._run = self._package.init(
            id=path.read_text(),
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "distilljax"),
            name=folder.name,
            dir=str(folder),
            config=dict(record),
            allow_val_change=True,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs a record; a process of the package sends it."""
        self._run.log({k: float(v) for k, v in values.items()}, step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Logs images."""
        shown = {name: self._package.Image(image) for name, image in images.items()}
        self._run.log(shown, step=step)

    def close(self) -> None:
        """Ends the run of W&B."""
        self._run.finish()


OPENERS: dict[str, Callable[[epath.Path, int, Mapping[str, Any]], Any]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}
