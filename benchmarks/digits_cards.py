"""Every digits card in full: trained from its teacher, sampled and judged.

python -m benchmarks.digits_cards [--cards=dmd,tdm] [--seeds=2] [--out=runs/cards]

Frechet distances over the teacher's, by the quick start's protocol; restoration is
judged on held-out images. Opt-in, since it takes about a minute a card and seed on two
idle cores. `cards.json` keeps what is done: a second call continues an interrupted one,
trains cards that were changed again and leaves the others. A card that fails becomes a
row with its error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.workload import CARDS, SMALL
from distilljax import api, cards, evaluation, generation, storage
from distilljax.bench import digits
from distilljax.data import degraded_digits
from distilljax.experiment.judge import (
    SEEDS,
    STEPS,
    TEACHER_NFE,
    Judge,
    RestorationJudge,
)
from distilljax.runtime.errors import unknown
from distilljax.training.claim import differing

TEACHER, RESTORER = "teacher", "restoration_teacher"
# Cards that make teachers, sampled as teachers are.
FIELDS = (TEACHER, RESTORER, "denoising")
RESTORING = (RESTORER, "tsd_sr")
# Students of one step: their cards train them at no other.
ONE_STEP = (*digits.ONE_STEP, "tsd_sr")
KEPT = ("frechet", "accuracy", "precision", "recall", "copies", "psnr")
TINY_CYCLES, TINY_BATCH = 4, 208


def say(text: str) -> None:
    """One line for the reader."""
    print(text, flush=True)


def names() -> list[str]:
    """The cards that are compared with a teacher."""
    teachers = (TEACHER, RESTORER)
    return sorted(p.stem for p in CARDS.glob("*.py") if p.stem not in teachers)


def teacher_of(name: str) -> str:
    """The card that a card starts from, or is compared with."""
    return RESTORER if name in RESTORING else TEACHER


def evaluations(name: str) -> tuple[int, ...]:
    """Network evaluations a sample at which a card is judged."""
    if name in FIELDS:
        return (TEACHER_NFE,)
    return STEPS[:1] if name in ONE_STEP else STEPS


def read(name: str, seed: int, tiny: bool) -> Any:
    """The card under a training seed."""
    config = cards.load(CARDS / f"{name}.py")
    with config.unlocked():
        config.seed = seed
        if tiny:
            config.cycles, config.batch_size = TINY_CYCLES, TINY_BATCH
            for network in config.networks.values():
                network.update(SMALL if network.name == "mlp" else {})
    return config


class Job:
    """The results in a folder, and what makes them."""

    def __init__(self, folder: pathlib.Path, tiny: bool):
        self.folder, self.tiny = folder, tiny
        self.path = folder / "cards.json"
        self.found: dict[str, Any] = {"rows": {}}
        if self.path.is_file():
            self.found = json.loads(self.path.read_text())
        self._judges: dict[bool, Judge | RestorationJudge] = {}

    def write(self) -> None:
        """Writes results and table."""
        self.found["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        self.found["hardware"] = evaluation.hardware()
        self.found["versions"] = evaluation.versions()
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.found, indent=1) + "\n"
        storage.write_atomic(self.path, text.encode())
        table = self.folder / "cards.md"
        storage.write_atomic(table, markdown(self.found).encode())

    def judge(self, name: str, source: Any) -> Judge | RestorationJudge:
        """The one judge of all cards of a kind."""
        restores = name in RESTORING
        seeds = SEEDS[:1] if self.tiny else SEEDS
        if restores not in self._judges:
            self._judges[restores] = (
                RestorationJudge.of(source, degraded_digits("test"), seeds)
                if restores
                else Judge.of(source, seeds)
            )
        return self._judges[restores]

    def row(self, name: str, seed: int) -> dict[str, Any]:
        """The row of a card, made if it is not there or the card was changed."""
        key, config = f"{name}/{seed}", read(name, seed, self.tiny)
        plain = json.loads(json.dumps(config.to_dict()))
        done = self.found["rows"].get(key)
        if done is not None and done["card"] == plain and "error" not in done:
            say(f"{key}: done before, in {done['seconds']:.0f} s")
            return done
        say(f"{key}: ...")
        row = {"name": name, "seed": seed, "card": plain}
        try:
            row |= self.measure(name, config, plain, self.folder / f"seed{seed}" / name)
        # Whatever stops a card is its result, and the other cards go on.
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        self.found["rows"][key] = row
        self.write()
        say(f"{key}: {row.get('error') or in_words(row, self.found)}")
        return row

    def measure(
        self, name: str, config: Any, plain: Mapping[str, Any], folder: pathlib.Path
    ) -> dict[str, Any]:
        """Trains, samples and judges a card."""
        _make_room(folder, plain)
        found = cards.expand(config)
        teacher = None
        if found.method.taught:
            teacher = api.load(self.folder / "seed0" / teacher_of(name))
        began = time.process_time()
        fitted = api.fit_card(found, teacher=teacher, folder=folder)
        assert fitted.result is not None
        cpu = time.process_time() - began
        judge = self.judge(name, found.source)
        by_nfe = {}
        for nfe in evaluations(name):
            drawn = judge.draw(fitted, sampler(name, fitted, nfe))
            statistics = judge.statistics(drawn)
            by_nfe[str(nfe)] = {k: statistics[k] for k in KEPT if k in statistics}
        return {
            "seconds": round(fitted.result.seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "by_nfe": by_nfe,
        }


def _make_room(folder: pathlib.Path, card: Mapping[str, Any]) -> None:
    """Removes the run of another version of the card."""
    path = folder / "config.json"
    if path.is_file():
        there = json.loads(path.read_text()).get("card", {})
        if differing(there, card):
            shutil.rmtree(folder)


def sampler(name: str, run: api.Fitted, nfe: int) -> generation.Sampler:
    """How a card's run is sampled at so many evaluations."""
    if name in FIELDS:
        return generation.teacher_sampler(run.network, nfe)
    return generation.student_sampler(run.method, run.network, nfe)


def base_of(found: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Statistics of the teacher of a card, once they are known."""
    row = found["rows"].get(f"{teacher_of(name)}/0", {})
    return row.get("by_nfe", {}).get(str(TEACHER_NFE))


def in_words(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """A row as one line."""
    parts = []
    for nfe, own in row["by_nfe"].items():
        base = base_of(found, row["name"]) or own
        more = ("accuracy", "recall", "psnr")
        rest = [f"{key} {own[key]:.3f}" for key in more if key in own]
        ratio = f"{nfe} NFE {own['frechet'] / base['frechet']:.2f} x teacher"
        parts.append(", ".join([ratio, *rest]))
    return f"{row['seconds']:.0f} s; " + "; ".join(parts)


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of the results, seeds joined by commas."""
    tables = [_table(found, TEACHER, "recall"), _table(found, RESTORER, "psnr")]
    return "\n".join(table for table in tables if table)


def _table(found: Mapping[str, Any], teacher: str, last: str) -> str:
    """The cards of one teacher; nothing without the teacher."""
    base = base_of(found, teacher)
    if base is None:
        return ""
    lines = [
        f"`{teacher}`: Frechet distance {base['frechet']:.3f} at {TEACHER_NFE} "
        f"evaluations, accuracy {base['accuracy']:.3f}, {last} {base[last]:.3f}.",
        "",
        f"| card | 1 step | 2 steps | 4 steps | accuracy | {last} | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(found["rows"].values(), key=lambda r: (r["name"], r["seed"])):
        if teacher_of(row["name"]) == teacher != row["name"]:
            grouped.setdefault(row["name"], []).append(row)
    for name, group in grouped.items():
        for row in group:
            if "error" in row:
                lines.append(f"| `{name}`, seed {row['seed']} | {row['error']} |")
        whole = [row for row in group if "error" not in row]
        if whole:
            cells = _cells(whole, base["frechet"], last)
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(rows: Sequence[Mapping[str, Any]], teacher: float, last: str) -> list[str]:
    def joined(of: Callable[[Mapping[str, Any]], str]) -> str:
        return ", ".join(of(row) for row in rows)

    def ratio(nfe: str) -> str:
        return joined(lambda r: f"{r['by_nfe'][nfe]['frechet'] / teacher:.2f}")

    there = rows[0]["by_nfe"]
    steps = [ratio(str(k)) if str(k) in there else "" for k in STEPS]
    first = next(iter(there))
    if first not in map(str, STEPS):
        steps[0] = f"{ratio(first)} at {first}"
    return [
        *steps,
        joined(lambda r: f"{r['by_nfe'][first]['accuracy']:.3f}"),
        joined(lambda r: f"{r['by_nfe'][first][last]:.3f}"),
        joined(lambda r: f"{r['seconds']:.0f}"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a card failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits_cards",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--cards", help="names joined by commas; default all")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/cards"))
    parser.add_argument("--tiny", action="store_true", help="only to see that it runs")
    given = parser.parse_args(arguments)
    wanted = names() if given.cards is None else given.cards.split(",")
    for name in wanted:
        if name not in names():
            parser.error(unknown("card", name, names()))
    job = Job(given.out, given.tiny)
    rows = [job.row(name, 0) for name in sorted({teacher_of(name) for name in wanted})]
    rows += [job.row(name, seed) for seed in range(given.seeds) for name in wanted]
    say(markdown(job.found))
    say(f"written to {job.path}")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
