"""How every method runs on the suite ``mixture``: options and learning rates.

Schedules are shares of the run, so that a budget may be larger or smaller.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from distilljax.bench.suites import Entry
from distilljax.core.draws import TeacherTrajectory
from distilljax.diffusion.solvers import DPMSolverPP2M
from distilljax.diffusion.times import (
    ArctanNormal,
    EvenGrid,
    LogitNormal,
    LogNormal,
    Pair,
    Ramp,
    Uniform,
    central,
)
from distilljax.losses.metrics import half_mse
from distilljax.methods import CATALOGUE
from distilljax.methods.curricula import DoublingSegments, RootSegments, Shrink
from distilljax.methods.parts import BELOW_NOISE

_ALONE = "without a teacher: at one step samples are left between modes"


def settings_of(cycles: int) -> dict[str, dict[str, Any]]:
    """How roles are trained, alike for all methods."""
    del cycles
    schedule = {"name": "warmup_cosine", "warmup": 50}
    student = {"lr": 5e-4, "schedule": schedule, "clip": 1.0, "ema": 0.99}
    critic = {"lr": 1e-3, "schedule": schedule, "clip": 1.0}
    return {
        "student": student,
        "fake_score": critic,
        "discriminator": {**critic, "betas": (0.5, 0.99)},
        "log_weight": {"lr": 1e-3},
    }


def _slow(cycles: int) -> dict[str, dict[str, Any]]:
    """With a longer average, for targets that scatter with the noise of one sample."""
    found = settings_of(cycles)
    return {**found, "student": {**found["student"], "ema": 0.999}}


def _matching(cycles: int) -> dict[str, dict[str, Any]]:
    """With higher rates, for cycles of many evaluations, of which there are few."""
    found = settings_of(cycles)
    student, critic = found["student"], found["fake_score"]
    return {
        **found,
        "student": {**student, "lr": 1e-3},
        "fake_score": {**critic, "lr": 2e-3},
    }


def _fast_critic(cycles: int) -> dict[str, dict[str, Any]]:
    """With a fake score that follows its samples closely."""
    found = _matching(cycles)
    return {**found, "fake_score": {**found["fake_score"], "lr": 5e-3}}


def _warm_started(cycles: int) -> dict[str, dict[str, Any]]:
    """Slow after the warm start, from which matching leads away."""
    found = _matching(cycles)
    schedule = {**found["student"]["schedule"], "restart": max(cycles // 2, 1)}
    schedule["restart_factor"] = 0.03
    return {**found, "student": {**found["student"], "schedule": schedule}}


def mean_hops(segments: int) -> float:
    """Mean number of steps of CTM's teacher, drawn in proportion to the number."""
    return (2 * segments + 1) / 3


def start_entry() -> Entry:
    """How the network is trained that students start from."""
    settings = {
        "lr": 2e-3,
        "schedule": {"name": "warmup_cosine", "warmup": 50},
        "clip": 1.0,
        "ema": 0.999,
    }
    return Entry(lambda k, n: {}, lambda k: {"student": settings}, nfes=(32,))


def _pair() -> Any:
    return Pair(LogitNormal(-0.4, 1.4), 0.15, 0.5, 0.1)


def mixture_entries(rate: float = 1.0) -> Mapping[str, Entry]:
    """An entry for every method that the suite can feed.

    A method without one of its own runs under its defaults.

    Args:
      rate: factor of all learning rates, for networks of another width.
    """
    usual = Entry(lambda k, n: {}, settings_of)
    own = _entries()
    left = missing()
    found = {n: own.get(n, usual) for n in CATALOGUE if n not in left}
    return {
        name: entry._replace(settings=functools.partial(_slowed, entry.settings, rate))
        for name, entry in found.items()
    }


@functools.cache
def missing() -> Mapping[str, str]:
    """Methods that a teacher and noise do not feed, and why."""
    reasons = {name: entry.asks_for_more() for name, entry in CATALOGUE.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _slowed(
    settings: Callable[[int], Mapping[str, Mapping[str, Any]]], rate: float, cycles: int
) -> dict[str, dict[str, Any]]:
    return {
        role: {**section, "lr": rate * section["lr"]}
        for role, section in settings(cycles).items()
    }


def _entries() -> dict[str, Entry]:
    return {
        "cm_cd": Entry(
            lambda k, n: {"segments": 18, "grid": EvenGrid(), "target_decay": 0.9},
            settings_of,
        ),
        "scm": Entry(
            lambda k, n: {
                "law": LogNormal(0.0, 1.4),
                "warmup": Ramp(k // 4),
                "tangent": None,
                "learned_weight": False,
            },
            settings_of,
        ),
        "cm_ct": Entry(
            lambda k, n: {
                "segments": RootSegments(k, 2, 40),
                "grid": EvenGrid(),
                "init": "teacher",
                "target_decay": 0.0,
            },
            settings_of,
            note=_ALONE,
        ),
        "ict": Entry(
            lambda k, n: {
                "segments": DoublingSegments(k, 10, 80),
                "mean": 0.0,
                "init": "teacher",
                "metric": half_mse,
            },
            _slow,
            note=_ALONE,
        ),
        "ect": Entry(
            lambda k, n: {
                "gap": Shrink(k, 6),
                "law": LogNormal(0.0, 2.0),
                "metric": half_mse,
            },
            _slow,
            note=_ALONE,
        ),
        "lcm": Entry(
            lambda k, n: {"segments": 20, "guidance": 1.0, "target_decay": 0.9},
            settings_of,
        ),
        "facm": Entry(
            lambda k, n: {"law": ArctanNormal(0.0, 1.6), "warmup": Ramp(k // 3)},
            settings_of,
        ),
        "de_cm": Entry(
            lambda k, n: {
                "law": LogitNormal(0.0, 1.4),
                "start": Ramp(k // 2, 0.9, 1.0),
                "start_weight": 0.0,
                "end_weight": 1.0,
                "warmup": Ramp(k // 6),
            },
            settings_of,
            note="the hop without its derivative in the start, which hops from one "
            "start do not determine: with it two steps ended at 6.0 times the floor",
        ),
        "mean_flow": Entry(
            lambda k, n: {"law": _pair(), "p": 0.5, "warmup": Ramp(k // 6)},
            settings_of,
        ),
        "shortcut": Entry(
            lambda k, n: {"levels": 5, "share": 0.5, "target_decay": 0.99},
            settings_of,
        ),
        "ayf_emd": Entry(
            lambda k, n: {"law": _pair(), "warmup": Ramp(k // 6, 0.0, 0.99)},
            settings_of,
        ),
        "ctm": Entry(
            lambda k, n: {
                "segments": 8,
                "grid": EvenGrid(),
                "dsm_law": LogNormal(-1.2, 1.2),
                "target_decay": 0.95,
            },
            settings_of,
            trips=mean_hops(8),
            note="a jump is trained only through the jump that follows it to the data; "
            "with fresh noise in between (`Consistency`) four steps end at 2.1",
        ),
        "progressive": Entry(
            lambda k, n: {
                "steps": _halving(n),
                "round_cycles": k // len(_halving(n)),
            },
            settings_of,
            each=True,
        ),
        "reflow": Entry(lambda k, n: {"substeps": 8}, settings_of),
        "pi_flow": Entry(
            lambda k, n: {
                "steps": n,
                "substeps": 16,
                "sampling_substeps": 64,
                "teacher_ratio": Ramp(k // 3, 1.0, 0.0),
            },
            settings_of,
            each=True,
        ),
        "dmd2": Entry(
            lambda k, n: {
                **_rolled_out(n),
                "critic_steps": 2,
                "gan_weight": 0.01,
                "gan_critic_weight": 0.02,
                "warm_start": k // 2,
                "warm_start_draw": TeacherTrajectory(
                    n, max(8 // n, 2), solver=DPMSolverPP2M()
                ),
            },
            _warm_started,
            each=True,
        ),
        "sid": Entry(
            lambda k, n: _matched(n),
            _fast_critic,
            each=True,
            note="in 64 dimensions several steps end far apart under different "
            "seeds, some behind the start: the fake score lags (docs/bench.md)",
        ),
        "diff_instruct": Entry(
            lambda k, n: {
                "law": central(0.02),
                "critic_law": Uniform(),
                "critic_steps": 2,
            },
            _matching,
            nfes=(1,),
            note="a generator of one step",
        ),
        "dmd": Entry(
            lambda k, n: {
                "pairs": TeacherTrajectory(1, 8, solver=DPMSolverPP2M()),
                "critic_steps": 2,
            },
            _matching,
            nfes=(1,),
            note="a generator of one step",
        ),
        "f_distill": Entry(
            lambda k, n: {
                **_matched(n),
                "gan_weight": 0.01,
                "gan_critic_weight": 0.02,
            },
            _matching,
            each=True,
            note="four critic updates and the discriminator leave it 561 cycles for "
            "four steps, and its seeds end far apart",
        ),
        "tdm": Entry(
            lambda k, n: {
                "steps": (n,),
                # Its steps are those of a trajectory, which begins at pure noise.
                "grid": BELOW_NOISE if n == 1 else EvenGrid(),
                "critic_steps": 2,
                "metric": half_mse,
                "told_end": n > 1,
                "separate": n == 1,
            },
            _matching,
            each=True,
        ),
        "ladd": Entry(
            lambda k, n: {
                "steps": n,
                "law": Uniform(),
                "r1_weight": 0.1,
                "critic_steps": 2,
                "told_start": n > 1,
            },
            _matching,
            each=True,
            note="no score: in 64 dimensions, where modes lie far apart, several steps "
            "end near the start (at four 17, 13.7 with 2 and 4 M evaluations, the "
            "start 12.6; lower rates 14.9, cleaner features 15.4)",
        ),
        "rcm": Entry(
            lambda k, n: {
                "scm_weight": 2.0,
                "dmd_weight": 0.05,
                # Its matching costs three times as much as scm, which is left too
                # few cycles, and a short ramp, by an early start.
                "warmup": 4 * k // 5,
                "law": LogNormal(0.0, 1.4),
                "critic_steps": 2,
                "dmd_law": central(0.02),
                "grid": EvenGrid(),
                "scm_options": {
                    "warmup": Ramp(k // 2),
                    "state_only": False,
                    "tangent": None,
                },
                "dmd_options": {"critic_law": Uniform()},
            },
            settings_of,
        ),
        "sana_sprint": Entry(
            lambda k, n: {
                "law": LogNormal(0.0, 1.4),
                "noise_law": LogNormal(0.09, 1.0),
                "adversarial_weight": 0.01,
                "scm_weight": 1.0,
                "warmup": k // 2,
                "scm_options": {"tangent": None, "learned_weight": False},
            },
            settings_of,
        ),
        "gdmd": Entry(
            lambda k, n: _matched(n),
            _matching,
            each=True,
            note="the reward is the same for all samples: the data are matched; "
            "in 64 dimensions four steps end at the start (13.1 and 12.6 at 4 M; 10.5 "
            "with 2.5 times the critic's rate)",
        ),
    }


def _rolled_out(n: int) -> dict[str, Any]:
    """Options of distribution matching on the student's rollout of ``n`` steps."""
    return {
        "steps": (n,),
        "critic_steps": 2 if n == 1 else 4,
        "told_start": n > 1,
    }


def _matched(n: int) -> dict[str, Any]:
    """`_rolled_out` from below pure noise, where the start's samples differ."""
    return {**_rolled_out(n), "grid": BELOW_NOISE}


def _halving(last: int) -> tuple[int, ...]:
    """Rounds of progressive distillation that end at so many steps."""
    return tuple(k for k in (16, 8, 4, 2, 1) if k >= last)
