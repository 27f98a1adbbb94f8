"""One call for all suites: what ``distilljax bench`` does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from distilljax.bench.digits import digits
from distilljax.bench.mixtures import mixture
from distilljax.bench.runner import SEEDS, run
from distilljax.bench.suites import Suite
from distilljax.runtime.errors import unknown

SUITES = ("mixture", "digits")
# One or two of every family.
QUICK = (
    "cm_cd",
    "scm",
    "mean_flow",
    "shortcut",
    "reflow",
    "diff_instruct",
    "dmd2",
    "rcm",
)
_QUICK_SEEDS, _QUICK_SAMPLES = 2, 1024


def make_suite(
    name: str,
    *,
    oracle: str | os.PathLike | None = None,
    oracle_seed: int = 0,
    dimension: int | None = None,
    quick: bool = False,
) -> Suite:
    """A suite by name.

    Args:
      name: ``mixture`` or ``digits``.
      oracle: see `bench.mixture`.
      oracle_seed: see `bench.mixture`.
      dimension: see `bench.mixture`; default 2.
      quick: smaller numbers of everything.

    Raises:
      ValueError: for an unknown suite, or an oracle for one that has none.
    """
    if name not in SUITES:
        raise ValueError(unknown("suite", name, SUITES))
    if name == "digits":
        if oracle is not None or oracle_seed or dimension is not None:
            raise ValueError(
                "oracle, oracle_seed and dimension belong to --suite=mixture; the "
                "digits have no exact teacher"
            )
        return digits(quick=quick)
    if oracle is not None and (oracle_seed or dimension is not None):
        raise ValueError(
            "an oracle from a file has its own size: leave oracle_seed and dimension "
            "out"
        )
    suite = mixture(
        oracle=oracle,
        oracle_seed=oracle_seed,
        dimension=2 if dimension is None else dimension,
        **({"samples": _QUICK_SAMPLES} if quick else {}),
    )
    if not quick:
        return suite
    return dataclasses.replace(suite, budget=150_000, pretraining=1_000_000)


def run_suite(
    suite: str,
    out: str | os.PathLike,
    *,
    methods: str | Sequence[str] | None = None,
    seeds: int | None = None,
    budget: int | None = None,
    oracle: str | os.PathLike | None = None,
    oracle_seed: int = 0,
    dimension: int | None = None,
    quick: bool = False,
    fresh: bool = False,
    redo: bool = False,
) -> dict[str, Any]:
    """Runs methods on a suite; see `make_suite` and `runner.run`."""
    made = make_suite(
        suite, oracle=oracle, oracle_seed=oracle_seed, dimension=dimension, quick=quick
    )
    if seeds is None:
        seeds = _QUICK_SEEDS if quick else SEEDS
    if methods is None and quick:
        methods = [name for name in QUICK if name in made.entries]
    return run(
        made,
        out,
        methods=methods,
        seeds=seeds,
        budget=budget,
        fresh=fresh,
        redo=redo,
    )
