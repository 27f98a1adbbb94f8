"""What to do next, for the last lines of a command."""

from __future__ import annotations

import os
import shlex

from distilljax.core.method import Method
from distilljax.diffusion.sampler import Deterministic


def after_training(
    method: Method,
    folder: str | os.PathLike,
    *,
    conditional: bool = False,
) -> list[str]:
    """How the student of a run is sampled, and what a teacher is for.

    Args:
      method: what was trained.
      folder: its run folder.
      conditional: whether it was trained with conditions that are no labels.

    Returns:
      Lines.
    """
    run, how = shlex.quote(os.fspath(folder)), method.sampling
    fields = ["cond"] * conditional + ([how.start] if how.start else [])
    data = ""
    if fields:
        data = " --data=FILE.npz"
    lines = [f"sample it: distilljax sample --run={run} --steps={how.steps}{data}"]
    if how.start:
        lines.append(
            f"it edits and makes nothing of noise: FILE.npz holds what it starts from, "
            f"{' and '.join(map(repr, fields))}, a row for each sample"
        )
    elif fields:
        lines.append("FILE.npz holds its conditions, 'cond', a row for each sample")
    if _solves(method):
        lines.append(
            f"distil it: distilljax train --config=CARD --teacher={run}, with the card "
            "of a method (distilljax methods)"
        )
    return lines


def _solves(method: Method) -> bool:
    """Whether a student is a teacher: the ODE of a diffusion or flow model."""
    how = method.sampling
    deterministic = isinstance(how.renoise, Deterministic)
    return deterministic and how.two_time is False and not method.taught
