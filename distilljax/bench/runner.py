"""Runs methods on a suite, one row at a time, and keeps what is done.

The folder:

    bench.json, bench.md, bench.html   results, written again after every row
    rows/<method>.json                 what is done; a second call continues after it
    samples/<method>_nfe<k>_seed<i>.npz with ``x``, in the units of the data, and
                                       floor_seed<i>.npz of what cannot be beaten,
                                       teacher_seed<i>.npz of the exact teacher
    pretrained.npz                     the network that students start from
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distilljax import __about__ as _version
from distilljax import evaluation
from distilljax.bench import report
from distilljax.bench.suites import STEPS, Entry, Suite
from distilljax.bench.training import Sampler, sampling_noise, train
from distilljax.core.method import Method, Role
from distilljax.diffusion.sampler import Deterministic
from distilljax.methods import CATALOGUE, flow_matching
from distilljax.runtime import storage
from distilljax.training.claim import claim_results
from distilljax.training.export import load_params, save_params

SEEDS = 3
BASELINE, FLOOR, TEACHER = "pretrained", "floor", "teacher"


def say(text: str) -> None:
    """One line for the reader."""
    print(text, flush=True)


def run(
    suite: Suite,
    out: str | os.PathLike,
    *,
    methods: str | Sequence[str] | None = None,
    seeds: int = SEEDS,
    budget: int | None = None,
    fresh: bool = False,
    redo: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs what is missing of a bench.

    Args:
      suite: the problem.
      out: folder of the results.
      methods: names, or joined by commas; None or ``all`` for every one.
      seeds: trainings of each method.
      budget: network evaluations of one training; default the suite's.
      fresh: removes what an earlier call left in the folder.
      redo: runs methods again that failed before.
      progress: whether to show a bar of every training.

    Returns:
      What ``bench.json`` holds.

    Raises:
      ValueError: for an unknown method, or a folder that holds something else.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    budget = suite.budget if budget is None else budget
    if budget < 1:
        raise ValueError(f"budget must be at least 1 network evaluation, got {budget}")
    names = suite.chosen(methods)
    bench = _Bench(suite, epath.Path(out), seeds, budget, progress)
    bench.claim(fresh)
    bench.baselines()
    for number, name in enumerate(names, 1):
        bench.row(name, f"{number}/{len(names)}", redo)
    return bench.write(final=True)


class _Bench:
    """One folder of results."""

    def __init__(
        self, suite: Suite, folder: epath.Path, seeds: int, budget: int, progress: bool
    ):
        self.suite, self.folder, self.budget = suite, folder, budget
        self.seeds, self.progress = tuple(range(seeds)), progress
        self.start: Any = None

    def claim(self, fresh: bool) -> None:
        """Makes the folder this bench's, or refuses."""
        record = {
            "version": _version.__version__,
            "suite": self.suite.name,
            "budget": self.budget,
            "seeds": len(self.seeds),
            "batch_size": self.suite.batch_size,
            "samples": self.suite.judge.count,
            **self.suite.settings,
        }
        path = self.folder / "settings.json"
        self.settings = claim_results(path, record, "bench", fresh=fresh)

    # What there is before any method.

    def baselines(self) -> None:
        """The pretrained network, sampled; the truth, judged by itself; the teacher."""
        self._pretrain()
        self._kept(FLOOR, self._floor)
        if self.suite.teacher is not None:
            self._kept(TEACHER, self._teacher)
        self._kept(BASELINE, self._pretrained)

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self.folder / "rows" / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text())
        row = json.loads(json.dumps(make()))
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomic(path, (json.dumps(row, indent=1) + "\n").encode())
        return row

    def _pretrain(self) -> None:
        path = self.folder / "pretrained.npz"
        if path.is_file():
            self.start = load_params(path)
            return
        say(f"pretraining: {self.suite.pretraining:,} evaluations ...")
        began = time.monotonic()
        with self._bar("pretraining") as bar:
            found = train(
                self.suite,
                "flow_matching",
                self.suite.start,
                None,
                budget=self.suite.pretraining,
                seeds=(0,),
                probes=1,
                progress=bar,
            )
        self.start = jax.tree.map(lambda leaf: np.asarray(leaf[0]), found.params)
        save_params(path, self.start)
        (_, (value,)) = found.history[-1]
        say(
            f"pretraining: {time.monotonic() - began:.0f} s, {self.suite.headline} "
            f"{value:.4g} at {self.suite.start.nfes[0]} evaluations"
        )

    def _floor(self) -> dict[str, Any]:
        """What the best samples that there can be score."""
        sets = max(len(self.seeds), self.suite.floor_draws)
        draw = functools.partial(self.suite.floor, self.start)
        return {
            "name": self.suite.floor_name,
            "by_nfe": self._judged_sets(FLOOR, draw, range(sets)),
        }

    def _teacher(self) -> dict[str, Any]:
        """The exact teacher on the noise that all students are sampled from."""
        suite, teacher = self.suite, self.suite.teacher
        assert teacher is not None

        def draw(seed: int) -> np.ndarray:
            return teacher(sampling_noise(seed, suite.judge.count, suite.sample_shape))

        return {"name": TEACHER, "by_nfe": self._judged_sets(TEACHER, draw, self.seeds)}

    def _judged_sets(
        self, name: str, draw: Callable[[int], np.ndarray], seeds: Sequence[int]
    ) -> dict[str, Any]:
        """Sets of samples, compared; those of the bench's seeds are written."""
        rows = []
        for seed in seeds:
            x = draw(seed)
            if seed in self.seeds:
                self._save(f"{name}_seed{seed}", x)
            rows.append(self.suite.judge.statistics(x))
        return _over_seeds(rows)

    def _pretrained(self) -> dict[str, Any]:
        network = self.suite.backbone
        method = Method(
            BASELINE,
            {"student": Role()},
            flow_matching().phases,
            sampling=flow_matching().sampling,
        )
        params = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(self.seeds), *np.shape(leaf))),
            self.start,
        )
        by_nfe = {}
        for nfe in STEPS:
            by_nfe[str(nfe)] = self._judged(
                BASELINE, method, network, params, nfe, True
            )
        return {"name": BASELINE, "by_nfe": by_nfe}

    # Methods.

    def row(self, name: str, where: str, redo: bool) -> dict[str, Any]:
        """Makes the row of a method if it is not there."""
        path = self.folder / "rows" / f"{name}.json"
        if path.is_file():
            done = json.loads(path.read_text())
            if not (redo and "error" in done):
                words = report.in_words(self._base(), done)
                say(f"{where} {name}: done before, {words}")
                return done
            path.unlink()
        say(f"{where} {name}: ...")
        row = self._kept(name, lambda: self._made(name))
        say(f"{where} {name}: {report.in_words(self._base(), row)}")
        self.write()
        return row

    def _made(self, name: str) -> dict[str, Any]:
        entry, began = self.suite.entry(name), time.monotonic()
        parts = [CATALOGUE[part] for part in name.split("+")]
        row = {
            "name": name,
            "family": parts[0].family if len(parts) == 1 else "composition",
            "cite": "; ".join(str(part.cite) for part in parts),
            "note": entry.note,
        }
        try:
            row |= self._measured(name, entry)
        # Whatever stops a method is its result, and the other methods go on.
        except Exception as error:
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}".split("\n")[0]
        return {**row, "seconds": round(time.monotonic() - began, 1)}

    def _measured(self, name: str, entry: Entry) -> dict[str, Any]:
        runs, by_nfe = {}, {}
        follows = all(CATALOGUE[part].follows_flow for part in name.split("+"))
        for made_for in entry.nfes if entry.each else entry.nfes[:1]:
            label = f"{name} for {made_for}" if entry.each else name
            with self._bar(label) as bar:
                found = train(
                    self.suite,
                    name,
                    entry,
                    self.start,
                    budget=self.budget,
                    nfe=made_for,
                    seeds=self.seeds,
                    progress=bar,
                )
            runs[str(made_for)] = {
                **found.spent._asdict(),
                "history": found.history,
            }
            for nfe in (made_for,) if entry.each else entry.nfes:
                by_nfe[str(nfe)] = self._judged(
                    name, found.method, found.network, found.params, nfe, follows
                )
        return {"runs": runs, "each": entry.each, "by_nfe": by_nfe}

    def _judged(
        self, name: str, method: Method, network: Any, params: Any, nfe: int, flow: bool
    ) -> dict[str, Any]:
        """Samples of all seeds, written and compared."""
        # Fresh noise between steps leaves the path of the first.
        flow = flow and (nfe == 1 or isinstance(method.sampling.renoise, Deterministic))
        sampler = Sampler(self.suite, method, network, nfe)
        drawn = sampler(params, self.seeds)
        noise = np.asarray(sampler.noise(self.seeds))
        rows = []
        for seed, x, eps in zip(self.seeds, drawn, noise, strict=True):
            self._save(f"{name}_nfe{nfe}_seed{seed}", x)
            row = self.suite.judge.statistics(x)
            rows.append(row | (self.suite.judge.paired(x, eps) if flow else {}))
        return _over_seeds(rows)

    def _save(self, name: str, x: np.ndarray) -> None:
        path = self.folder / "samples" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {"x": np.asarray(x, np.float32)}
        if self.suite.judge.labels is not None:
            fields["label"] = self.suite.judge.labels
        storage.save_npz(path, fields)

    def _bar(self, label: str) -> report.Bar:
        return report.Bar(label, self.progress)

    # Results.

    def _base(self) -> dict[str, Any]:
        found = {}
        for name in (FLOOR, BASELINE, TEACHER):
            path = self.folder / "rows" / f"{name}.json"
            if path.is_file():
                found[name] = json.loads(path.read_text())["by_nfe"]
        return {
            "headline": self.suite.headline,
            "floor_name": self.suite.floor_name,
            **found,
        }

    def results(self) -> dict[str, Any]:
        """Everything that the folder holds."""
        rows = []
        made = {path.stem: path for path in (self.folder / "rows").glob("*.json")}
        joined = sorted(name for name in made if "+" in name)
        for name in (*CATALOGUE, *joined):
            if name in made:
                rows.append(json.loads(made[name].read_text()))
        found = {
            "suite": self.suite.name,
            **self._base(),
            "settings": self.settings,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": evaluation.hardware(),
            "versions": evaluation.versions(),
            "missing": dict(self.suite.missing),
            "rows": rows,
        }
        return json.loads(json.dumps(found))

    def write(self, final: bool = False) -> dict[str, Any]:
        """Writes results and tables; the pictures at the end."""
        found = self.results()
        text = json.dumps(found, indent=1) + "\n"
        storage.write_atomic(self.folder / "bench.json", text.encode())
        table = report.markdown(found)
        storage.write_atomic(self.folder / "bench.md", table.encode())
        if final:
            say("\n" + table)
            path = report.write_page(self.folder, found)
            say(f"report: {path}")
        return found


def _over_seeds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation over seeds and the values, of every number."""
    out: dict[str, Any] = {}
    for key in rows[0]:
        values = np.asarray([row[key] for row in rows], np.float64)
        if values.ndim > 1:
            out[key] = values.mean(0).tolist()
            continue
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        out[key] = {
            "mean": float(values.mean()),
            "std": spread,
            "seeds": values.tolist(),
        }
    return out
