"""The quick start: real digits, one teacher, four methods, 1 to 4 steps, one report.

Every stage leaves a record in ``stages/``; a second call reuses what is finished and an
interrupted one continues, inside a training run too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from distilljax import __about__ as _version
from distilljax import evaluation
from distilljax.core.binding import Network
from distilljax.core.method import Method
from distilljax.experiment import api, cards
from distilljax.experiment.judge import SEEDS, STEPS, TEACHER_NFE, Judge
from distilljax.runtime import storage
from distilljax.runtime.labels import named
from distilljax.sampling import generation
from distilljax.training.claim import claim_results
from distilljax.training.loop import Hooks, View
from distilljax.training.roles import network_of
from distilljax.training.writers import read_metrics

METHODS = ("scm", "mean_flow", "dmd2", "rcm")
PROBES = 8
_SMOKE_CYCLES = {"teacher": 60}
_SMOKE_SIZES = {"width": 64, "hidden": 64, "blocks": 1, "embedding": 32}


def say(text: str) -> None:
    """One line for the reader."""
    print(text, flush=True)


def run(
    out: str | os.PathLike = "runs/quickstart",
    *,
    fresh: bool = False,
    smoke: bool = False,
    seed: int = 0,
) -> epath.Path:
    """Runs what is missing of the quick start.

    Args:
      out: folder of the results.
      fresh: removes what an earlier call left in it.
      smoke: everything in miniature, to see that it works.
      seed: of every training; the noise of the samples stays the same.

    Returns:
      Path of ``report.html``.

    Raises:
      ValueError: if the folder holds something else.
    """
    folder = epath.Path(out)
    with _quick_compilation(smoke):
        return _run(_Job(folder, smoke, seed, fresh))


@contextlib.contextmanager
def _quick_compilation(on: bool):
    """Programs that run a dozen times are not worth optimising."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, on or before)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _run(job: _Job) -> epath.Path:
    say(f"distilljax {_version.__version__} quick start in {job.folder}")
    job.teacher()
    for method in METHODS:
        job.student(method)
    job.sample()
    job.evaluate()
    return job.report()


def rebuild(out: str | os.PathLike = "runs/quickstart") -> epath.Path:
    """Writes the report of a finished quick start again.

    Raises:
      ValueError: if the folder holds none, or an unfinished one.
    """
    folder = epath.Path(out)
    path = folder / "quickstart.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no quick start; run one with --out={folder}")
    there = json.loads(path.read_text())
    job = _Job(folder, there["smoke"], there["seed"])
    if not (folder / "stages" / "evaluation.json").is_file():
        raise ValueError(
            f"the quick start in {folder} is not finished; run it again to continue"
        )
    return job.report()


class _Job:
    """The stages of one quick start."""

    def __init__(self, folder: epath.Path, smoke: bool, seed: int, fresh: bool = False):
        self.folder, self.smoke, self.seed = folder, smoke, seed
        self.seeds = SEEDS[:1] if smoke else SEEDS
        self.probes = 2 if smoke else PROBES
        names = ("teacher", *METHODS)
        self.cards = {name: self._card(name) for name in names}
        self._claim(fresh)
        self.judge = Judge.of(cards.expand(self.cards["teacher"]).source, self.seeds)
        self.x0, self.labels = self.judge.x0, self.judge.labels
        self._programs: dict[str, Any] = {}

    def _card(self, name: str) -> Any:
        config: Any = cards.load(f"digits/{name}")
        config.seed = self.seed
        if not self.smoke:
            return config
        with config.unlocked():
            config.cycles = _SMOKE_CYCLES.get(name, 12)
            # Divisible by the slots of every card.
            config.batch_size = 208
            for network in config.networks.values():
                if network.name == "mlp":
                    network.update(_SMOKE_SIZES)
            for option in ("warm_start", "warmup"):
                if isinstance(config.method.get(option), int):
                    config.method[option] = min(4, config.method[option])
        return config

    def _claim(self, fresh: bool) -> None:
        """Makes the folder this quick start's, or refuses."""
        record = {"version": _version.__version__, "smoke": self.smoke}
        record |= {"seed": self.seed}
        record["cards"] = {n: c.to_dict() for n, c in self.cards.items()}
        claim_results(
            self.folder / "quickstart.json", record, "quick start", fresh=fresh
        )

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Runs a stage once; its record says how long it took."""
        path = self.folder / "stages" / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text())
            say(f"{name}: done before, in {record['seconds']:.0f} s")
            return record
        say(f"{name}: ...")
        began, spent = time.monotonic(), time.process_time()
        record = work()
        record["cpu_seconds"] = round(time.process_time() - spent, 2)
        seconds = time.monotonic() - began + record.pop("seconds_before", 0.0)
        record["seconds"] = round(seconds, 2)
        path.parent.mkdir(exist_ok=True)
        storage.write_atomic(path, json.dumps(record, indent=1).encode())
        say(f"{name}: {seconds:.0f} s, {record['cpu_seconds']:.0f} s of CPU")
        return record

    def _program(self, name: str, method: Method, network: Network) -> Any:
        """A student's sampler, compiled once for all numbers of steps and all calls."""
        if name not in self._programs:
            sampler = generation.counted_sampler(method, network, STEPS)
            self._programs[name] = jax.jit(sampler)
        return self._programs[name]

    def _probe(self, name: str, found: cards.Experiment) -> Hooks:
        """Frechet distance of a fixed seed while training, and sample grids."""
        method = found.method
        network = network_of(method.roles, method.sampling.role, found.networks)
        shape = self.x0.shape[1:]
        one = np.int32(STEPS.index(1))
        if name == "teacher":
            draw = jax.jit(generation.teacher_sampler(network, 16))
        else:
            draw = self._program(name, method, network)
        eps = generation.initial_noise(0, 0, len(self.labels), shape)
        places = np.arange(len(self.labels), dtype=np.uint32)
        keys = generation.sample_keys(np.uint32(0), places)
        real = self.x0.reshape(len(self.labels), -1)
        columns = np.concatenate(
            [np.flatnonzero(self.labels == c)[:8] for c in range(10)]
        )
        captions = named(self.labels[columns])

        def images(view: View) -> np.ndarray:
            # On the host: parameters that are read from files meet the same program.
            params = jax.tree.map(np.asarray, view.params())
            given = params if name == "teacher" else (params, one)
            x = draw(given, eps, self.labels, keys)
            return np.clip(np.asarray(x), -1.0, 1.0)

        def evaluate(view: View) -> dict[str, float]:
            x = images(view)
            grid = evaluation.image_grid(x[columns], 8, 4, captions=captions)
            path = self.folder / name / "samples" / f"cycle_{view.step:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            evaluation.save_png(path, grid)
            flat = x.reshape(len(x), -1)
            return {"frechet": evaluation.frechet_distance(flat, real)}

        return Hooks(evaluate=evaluate)

    def _train(self, name: str, teacher: Any) -> dict[str, Any]:
        from distilljax.training.cost import run_evaluations

        config = self.cards[name]
        with config.unlocked():
            # Rounded up: the last one falls on the end, and there are no more.
            config.evaluate_every = -(-config.cycles // self.probes)
        found = cards.expand(config)
        began = time.monotonic()
        fitted = api.fit_card(
            found,
            teacher=teacher,
            folder=self.folder / name,
            hooks=self._probe(name, found),
        )
        assert fitted.result is not None
        spent = time.monotonic() - began
        return {
            # Time of earlier calls that this run continued.
            "seconds_before": max(0.0, fitted.result.seconds - spent),
            "train_seconds": round(fitted.result.seconds, 2),
            "network_evaluations": run_evaluations(fitted.result.setup),
        }

    def teacher(self) -> None:
        self.stage("teacher", lambda: self._train("teacher", None))

    def student(self, name: str) -> None:
        def work() -> dict[str, Any]:
            return self._train(name, api.load(self.folder / "teacher"))

        self.stage(name, work)

    def _path(self, name: str) -> epath.Path:
        return self.folder / "samples" / f"{name}.npz"

    def _names(self) -> list[str]:
        """File names of everything that is sampled."""
        students = [f"{name}_nfe{k}" for name in METHODS for k in STEPS]
        return [f"teacher_nfe{TEACHER_NFE}", *students]

    def _samplers(self) -> list[tuple[str, api.Fitted, generation.Sampler]]:
        """``(file name, run, sampler)`` of everything that is sampled."""
        teacher = api.load(self.folder / "teacher")
        rows = [
            (
                f"teacher_nfe{TEACHER_NFE}",
                teacher,
                generation.teacher_sampler(teacher.network, TEACHER_NFE),
            )
        ]
        for name in METHODS:
            student = api.load(self.folder / name)
            program = self._program(name, student.method, student.network)
            for place, k in enumerate(STEPS):
                params = (student.params, np.int32(place))
                run = dataclasses.replace(student, params=params)
                rows.append((f"{name}_nfe{k}", run, program))
        return rows

    def sample(self) -> None:
        def work() -> dict[str, Any]:
            for name, run, sampler in self._samplers():
                drawn = self.judge.draw(run, sampler)
                for path, x in zip(self._paths(name), drawn, strict=True):
                    api.save_samples(path, x, self.labels)
            return {}

        self.stage("sampling", work)

    def _paths(self, name: str) -> list[epath.Path]:
        """Files of a sampler's noise seeds."""
        more = [f"seeds/{name}_seed{seed}" for seed in self.seeds[1:]]
        return [self._path(n) for n in (name, *more)]

    def evaluate(self) -> None:
        def work() -> dict[str, Any]:
            def read(name: str) -> list[np.ndarray]:
                return [np.load(path)["x"] for path in self._paths(name)]

            return {
                "statistics": {
                    name: self.judge.statistics(read(name)) for name in self._names()
                }
            }

        self.stage("evaluation", work)

    def report(self) -> epath.Path:
        began = time.monotonic()
        stages = {
            path.stem: json.loads(path.read_text())
            for path in (self.folder / "stages").glob("*.json")
        }
        statistics = stages["evaluation"]["statistics"]
        seconds = {name: record["seconds"] for name, record in stages.items()}
        students = [
            {
                "method": name,
                "nfe": k,
                **statistics[f"{name}_nfe{k}"],
                "train_seconds": stages[name]["train_seconds"],
                "network_evaluations": stages[name]["network_evaluations"],
            }
            for name in METHODS
            for k in STEPS
        ]
        teacher = {"nfe": TEACHER_NFE, **statistics[f"teacher_nfe{TEACHER_NFE}"]}
        teacher["train_seconds"] = stages["teacher"]["train_seconds"]
        teacher["network_evaluations"] = stages["teacher"]["network_evaluations"]
        contents = {
            "title": "Handwritten digits: one teacher, four methods, 1 to 4 steps",
            "seconds": {"total": 0.0, **seconds},
            "hardware": evaluation.hardware(),
            "versions": evaluation.versions(),
            "teacher": teacher,
            "students": students,
            "protocol": {
                "data": "the 1797 digits of scikit-learn, 8x8, scaled to [-1, 1]",
                "samples": "1797 per noise seed, the data's labels; clipped to [-1, 1]",
                "seeds": f"means over noise seeds {', '.join(map(str, self.seeds))}",
                "frechet": "on pixels [1797, 64], float64, ddof 1",
                "precision, recall": "k = 3 nearest neighbours on pixels",
                "accuracy": "support vector classifier on pixels, trained on the data",
                "network evaluations": "matrix products of the whole training over one "
                "forward pass of one sample: forward 1, tangent +1, backward +2",
                "smoke": self.smoke,
            },
        }
        contents["seconds"]["report"] = round(time.monotonic() - began, 2)
        contents["seconds"]["total"] = round(sum(contents["seconds"].values()), 2)
        files = evaluation.write_report(
            self.folder, contents, self._grids(), self._curves(), columns=4
        )
        spent = sum(record.get("cpu_seconds", 0.0) for record in stages.values())
        self._verdict(contents, spent)
        say(f"report: {files.html}")
        return files.html

    def _grids(self) -> dict[str, np.ndarray]:
        rows = np.concatenate([np.flatnonzero(self.labels == c)[:4] for c in range(10)])
        grids = {"data": self.x0[rows]}
        for name in self._names():
            grids[name] = np.load(self._path(name))["x"][rows]
        return grids

    def _curves(self) -> dict[str, dict[str, Any]]:
        curves = {}
        for name in ("teacher", *METHODS):
            found = read_metrics(self.folder / name / "metrics.jsonl")
            steps, losses = found["student/loss"]
            curves[name] = {"step": steps, "loss": losses}
            if "evaluate/frechet" in found:
                at, values = found["evaluate/frechet"]
                curves[name].update(frechet_step=at, frechet=values)
        return curves

    def _verdict(self, report: dict[str, Any], spent: float) -> None:
        teacher = report["teacher"]
        line = "{:<12}{:>5}{:>10}{:>12}{:>10}{:>10}"
        say(line.format("", "NFE", "Frechet", "x teacher", "accuracy", "recall"))
        for row in ({"method": "teacher", **teacher}, *report["students"]):
            say(
                line.format(
                    row["method"],
                    row["nfe"],
                    f"{row['frechet']:.3f}",
                    f"{row['frechet'] / teacher['frechet']:.2f}",
                    f"{row['accuracy']:.3f}",
                    f"{row['recall']:.3f}",
                )
            )
        total = report["seconds"]["total"]
        say(f"total: {total:.0f} s, {spent:.0f} s of CPU")
