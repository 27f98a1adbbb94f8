"""Draws: computations that several terms of a phase share, run once per update.

A draw is a frozen dataclass ``Context -> pytree``, so that equal draws of one name
merge when methods are composed. It runs inside the gradient.
"""

from distilljax.core.draws.students import (
    Among,
    Denoised,
    Guidance,
    Jump,
    OdeRollout,
    Part,
    Renoise,
    Rollout,
    Scales,
)
from distilljax.core.draws.teachers import (
    StoredPairs,
    StoredTrajectory,
    TeacherTrajectory,
    Trajectory,
    follow,
)

__all__ = [
    "Among",
    "Denoised",
    "Guidance",
    "Jump",
    "OdeRollout",
    "Part",
    "Renoise",
    "Rollout",
    "Scales",
    "StoredPairs",
    "StoredTrajectory",
    "TeacherTrajectory",
    "Trajectory",
    "follow",
]
