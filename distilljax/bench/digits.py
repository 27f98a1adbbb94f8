"""The suite ``digits``: the cards of the quick start's data, all with one budget.

Teacher, networks, options and learning rates are those of the cards in
``configs/digits``; what counts cycles in them (ramps, warm-ups, rounds) is stretched to
the cycles that the budget pays for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilljax import evaluation, methods
from distilljax.bench.entries import mean_hops, missing, settings_of
from distilljax.bench.suites import BATCH, STEPS, Entry, Suite, no_reward
from distilljax.core.binding import Network
from distilljax.core.method import Method
from distilljax.data import digits as digits_source
from distilljax.experiment import cards, recipes, specs
from distilljax.experiment.judge import TEACHER_NFE, Judge
from distilljax.methods import CATALOGUE
from distilljax.methods.lengths import stretched_options
from distilljax.methods.parts import BELOW_NOISE
from distilljax.sampling import generation

ONE_STEP = ("diff_instruct", "dmd", "f_distill", "pi_flow", "progressive")
_NOTE = "its card trains it for one step"
_MATCHED = {
    "critic_steps": 2,
    "steps": (1, 2, 4),
    "grid": repr(BELOW_NOISE),
    "told_start": True,
    "floor": 0.05,
}
# Options of methods without a card; others would run under their defaults.
_OWN: dict[str, dict[str, Any]] = {
    "cm_cd": {"segments": 18, "grid": "EvenGrid()"},
    "sid": _MATCHED,
    "gdmd": _MATCHED,
}
# Options of cards that the bench changes. Under their ramps, a fifth of the run, some
# seeds do not recover from the end of it: here all of three do.
_CHANGED: dict[str, dict[str, Any]] = {"scm": {"warmup": "Ramp(900)"}}
_CYCLES = 1000


def _card(name: str) -> Any:
    if f"digits/{name}" not in cards.shipped():
        options = _OWN.get(name, {})
        method = methods.build(name, **specs.resolve(options))
        sections = {
            role: section
            for role, section in settings_of(_CYCLES).items()
            if role in method.trained
        }
        return recipes.digits_card(
            name,
            options,
            second_time="second_time" in method.roles["student"].needs,
            cycles=_CYCLES,
            **sections,
        )
    return cards.load(f"digits/{name}")


def entry_of(name: str, nfes: tuple[int, ...] | None = None) -> Entry:
    """The entry of a method from its card."""
    plain = _card(name).to_dict()
    options = {k: v for k, v in plain["method"].items() if k != "name"}
    options |= _CHANGED.get(name, {})
    options = specs.resolve(options)
    sections = {k: v for k, v in plain.items() if isinstance(v, Mapping)}

    def settings(cycles: int) -> dict[str, Any]:
        out = {}
        for role, section in sections.items():
            if "lr" not in section:
                continue
            schedule = dict(section["schedule"])
            if schedule.get("restart") is not None:
                at = round(schedule["restart"] * cycles / plain["cycles"])
                schedule["restart"] = max(at, 1)
            out[role] = {**section, "schedule": schedule}
        return out

    one = name in ONE_STEP
    return Entry(
        lambda k, n: stretched_options(
            cards.FACTORIES, plain["method"]["name"], options, k / plain["cycles"]
        ),
        settings,
        nfes=nfes or (STEPS[:1] if one else STEPS),
        trips=mean_hops(options["segments"]) if name == "ctm" else None,
        note=_NOTE if one else "",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DigitsJudge:
    """The quick start's statistics, a seed at a time.

    Attributes:
      judge: the quick start's judge.
    """

    judge: Judge

    @property
    def count(self) -> int:
        """As many as there are data."""
        return len(self.judge.labels)

    @property
    def labels(self) -> np.ndarray:
        """The labels of the data."""
        return self.judge.labels

    def statistics(self, x: np.ndarray) -> dict[str, Any]:
        """``frechet``, ``mmd``, ``accuracy``, ``precision``, ``recall``, ``copied`` as
        in the quick start, and ``coverage``."""
        found = self.judge.statistics([x])
        names = ("frechet", "mmd", "accuracy", "precision", "recall", "copied")
        flat, real = (v.reshape(len(v), -1) for v in (x, self.judge.x0))
        coverage = evaluation.density_coverage(real, flat).coverage
        return {name: found[name] for name in names} | {"coverage": coverage}

    def paired(self, x: np.ndarray, eps: np.ndarray) -> dict[str, Any]:
        """Nothing: the flow is not known."""
        return {}

    def probe(self, x: np.ndarray) -> float:
        """Frechet distance on pixels."""
        flat, real = (v.reshape(len(v), -1) for v in (x, self.judge.x0))
        return evaluation.frechet_distance(flat, real)


@functools.cache
def _networks(name: str, outline: cards.Outline) -> dict[str, Network]:
    built = dict(cards.expand(_card(name), source=outline).networks)
    if any(role.network == "reward" for role in methods.build(name).roles.values()):
        built["reward"] = no_reward()
    return built


def digits(*, quick: bool = False) -> Suite:
    """The suite.

    Args:
      quick: smaller numbers of everything.
    """
    source = digits_source()
    judge = DigitsJudge(Judge.of(source))
    x0 = jnp.asarray(judge.judge.x0)
    labels = jnp.asarray(judge.judge.labels)
    outline = cards.Outline(tuple(source.sample_shape), source.num_classes)
    teacher = _card("teacher")
    backbone = cards.expand(teacher, source=outline).networks["backbone"]
    draw_teacher = jax.jit(generation.teacher_sampler(backbone, TEACHER_NFE))

    def draw(key, lead):
        at = jax.random.randint(key, lead, 0, len(x0))
        return {"x0": x0[at], "cond": labels[at]}

    def networks(method: Method) -> Mapping[str, Network]:
        plain = method.name == "flow_matching"
        return {"backbone": backbone} if plain else _networks(method.name, outline)

    def floor(params: Any, seed: int) -> np.ndarray:
        eps = generation.initial_noise(2**22 + seed, 0, len(x0), outline.sample_shape)
        return clipped(draw_teacher(params, eps, labels, jax.random.key(seed)))

    def clipped(x: Any) -> np.ndarray:
        return np.clip(np.asarray(x, np.float32), -1.0, 1.0)

    entries = {n: entry_of(n) for n in CATALOGUE if n not in missing()}
    return Suite(
        name="digits",
        settings={"teacher": specs_of(teacher)},
        sample_shape=outline.sample_shape,
        headline="frechet",
        batch_size=BATCH,
        budget=20_000 if quick else 3_000_000,
        start=entry_of("teacher", (32,)),
        # As many samples as the quick start's teacher sees.
        pretraining=60_000 if quick else 3 * 2500 * 256,
        entries=entries,
        missing=missing(),
        networks=networks,
        counted=networks,
        given=lambda method, start: {"teacher": start},
        backbone=backbone,
        draw=draw,
        judge=judge,
        original=clipped,
        floor=floor,
        floor_name=f"teacher, {TEACHER_NFE} NFE",
    )


def specs_of(card: Any) -> dict[str, Any]:
    """What of a card determines the start, as JSON values."""
    plain = card.to_dict()
    return {name: plain[name] for name in ("method", "networks", "student")}
