"""One trainer for all methods: state, cycle, loop, checkpoints."""

from distilljax.runtime.extras import needed

with needed("distilljax.training"):
    from distilljax.training.config import CheckpointConfig as CheckpointConfig
    from distilljax.training.config import RoleConfig as RoleConfig
    from distilljax.training.config import ScheduleConfig as ScheduleConfig
    from distilljax.training.config import TrainConfig as TrainConfig
    from distilljax.training.cycle import build_cycle as build_cycle
    from distilljax.training.cycle import make_cycle as make_cycle
    from distilljax.training.cycle import phase_update as phase_update
    from distilljax.training.loop import train as train
    from distilljax.training.placement import make_mesh as make_mesh
    from distilljax.training.results import Hooks as Hooks
    from distilljax.training.results import Interrupted as Interrupted
    from distilljax.training.results import TrainResult as TrainResult
    from distilljax.training.results import View as View
    from distilljax.training.roles import make_setup as make_setup
    from distilljax.training.roles import run_mesh as run_mesh
    from distilljax.training.state import TrainState as TrainState
    from distilljax.training.state import create_frozen as create_frozen
    from distilljax.training.state import create_state as create_state
    from distilljax.training.writers import read_metrics as read_metrics

# Floors that modules here may import.
IMPORTS = ("runtime", "diffusion", "core", "data")
