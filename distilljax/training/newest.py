"""Parameters of a run from its newest whole checkpoint, finished or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from distilljax.core.binding import Network
from distilljax.core.method import Method
from distilljax.training import checks
from distilljax.training.checkpoints import Checkpoints
from distilljax.training.config import TrainConfig
from distilljax.training.digests import fingerprint
from distilljax.training.export import load_params
from distilljax.training.results import View
from distilljax.training.roles import make_setup
from distilljax.training.state import Params, abstract, create_frozen


def trained_params(
    folder: epath.Path,
    method: Method,
    networks: Mapping[str, Network],
    config: TrainConfig,
    sample_shape: tuple[int, ...],
    given: Mapping[str, Callable[[], Params]] | None = None,
) -> tuple[Params, int | None]:
    """Parameters of the sampled role of a run.

    A run that is finished wrote them into ``params/``. Of one that is not, or that was
    continued to more cycles since, they are those of the newest whole checkpoint, which
    another process may be adding to: nothing is moved or written. They are the ones
    that a run ended there would have left, the evaluation EMA where one is kept.

    Args:
      folder: run folder.
      method: of the run.
      networks: its networks, by role or key.
      config: how it is trained.
      sample_shape: shape of one sample.
      given: functions that read the parameters of frozen roles, which a derived role
        needs.

    Returns:
      The parameters, and the cycle of the checkpoint, None for a finished run.

    Raises:
      ValueError: if there are neither, or no checkpoint that is there can be read.
    """
    role = method.sampling.role
    file = folder / "params" / f"{role}.npz"
    saves = Checkpoints.to_read(folder)
    newest = max(saves.saved, default=0)
    if not newest or (newest >= config.cycles and file.is_file()):
        return load_params(file), None
    setup = make_setup(method, networks, config, sample_shape)
    shapes = {
        name: jax.eval_shape(setup.networks[name].init, jax.random.key(0))
        for name, player in method.roles.items()
        if player.derive is None
    }
    if "teacher" not in shapes:
        # Roles may start from one that plays no further part.
        shapes["teacher"] = shapes[role]
    restored = saves.newest(abstract(setup, shapes))
    frozen: dict[str, Params] = {}
    if method.roles[role].derive is not None:
        frozen = create_frozen(setup, {n: read() for n, read in (given or {}).items()})
        checks.check_frozen({"frozen": fingerprint(frozen)}, restored.meta)
    view = View(restored.step, restored.state, frozen, setup)
    ended = restored.step >= config.cycles
    return view.params(role), None if ended else restored.step


def settings_of(record: Mapping[str, Any], method: Method) -> TrainConfig:
    """The training config in the record of a run.

    Raises:
      ValueError: if the record is of another method, or has no settings.
    """
    if record.get("method") != method.name:
        raise ValueError(
            f"the run is one of method {record.get('method')!r}, got {method.name!r}; "
            "pass the method that it was trained with"
        )
    if "train" not in record:
        raise ValueError(
            f"the record of the run has no key 'train', but {sorted(record)}; restore "
            "config.json from a copy, or repeat the call that trained the run"
        )
    return TrainConfig.of(record["train"], roles=method.roles)
