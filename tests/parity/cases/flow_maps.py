"""Maps between times: MeanFlow, shortcut, AYF, FACM; reflow, progressive."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import jax
import numpy as np

from distilljax import methods, paths
from distilljax.diffusion.paths import Path
from distilljax.diffusion.times import KarrasPoints, Minimum, Ramp
from distilljax.methods import weights
from distilljax.methods.flow_map.shortcut import jump_levels
from tests.parity.vectors import Run, Vector, law_path


def mean_flow(v: Vector) -> dict[str, Run]:
    options = v.options
    end = options["interval_end"]
    method = methods.mean_flow(
        teacher=options["teacher"],
        omega=options["omega"],
        kappa=options["kappa"],
        guidance_interval=None if end == 1.0 else (0.0, end),
        p=options["p"],
        eps=options["eps"],
        label_dropout=0.5,
    )
    draws = {
        "times": (v.given("t"), v.given("s")),
        "eps": v.given("eps"),
        # The sample is dropped where the number lies below the share.
        "drop": 1.0 - v.given("drop"),
    }
    return {"student": Run(method, draws, v.networks(), v.data)}


def mean_flow_laws(v: Vector) -> dict[str, Any]:
    law = inspect.signature(methods.mean_flow).parameters["law"].default
    path = law_path(v.meta["laws"]["t"])
    t, s = law(jax.random.key(0), (100_000,), path)
    return {"t": np.asarray(t), "s_off": np.asarray(s[s < t])}


def shortcut(v: Vector) -> dict[str, Run]:
    levels = v.options["levels"]
    level = np.asarray(v.given("level"))
    share = float(np.mean(level < levels))
    method = methods.shortcut(
        levels=levels,
        share=share,
        teacher=False,
        guidance=v.options["guidance"],
        target_decay=0.999 if v.options["ema_target"] else 0.0,
    )
    # The method says which rows have which level; the file's rows come in that order.
    wanted = jump_levels(len(level), levels, share)
    np.testing.assert_array_equal(np.sort(wanted), np.sort(level))
    order = np.empty(len(level), int)
    order[np.argsort(wanted, kind="stable")] = np.argsort(level, kind="stable")
    data = jax.tree.map(lambda x: x[order], v.data)
    # Which of the equal jumps of a level it is, counted from the noise.
    place = 1.0 - v.given("t") + 0.25 / 2.0**level
    draws = {"place": place[order], "eps": v.given("eps")[order]}
    return {"student": Run(method, draws, v.networks(), data)}


def ayf_emd(v: Vector) -> dict[str, Run]:
    options = v.options
    ramp = Minimum(options["ramp_end"], Ramp(options["warmup"]))
    method = methods.ayf_emd(warmup=ramp)
    draws = {"times": (v.given("t"), v.given("s")), "eps": v.given("eps")}
    run = Run(method, draws, v.networks(), v.data, step=options["step"])
    return {"student": run}


def facm(v: Vector) -> dict[str, Run]:
    options = v.options
    # The release's clock runs from noise to data.
    low, high = 1.0 - options["interval_high"], 1.0 - options["interval_low"]
    method = methods.facm(
        teacher=options["teacher"],
        guidance=options["guidance"],
        guidance_interval=(low, high),
        mirrored=options["mirrored"],
    )
    draws = {"t": v.given("t"), "eps": v.given("eps")}
    return {"student": Run(method, draws, v.networks(), v.data)}


def reflow(v: Vector) -> dict[str, Run]:
    method = methods.reflow(online=False)
    data = {**v.data, "eps": v.given("eps")}
    run = Run(method, {"t": v.given("t")}, v.networks(), data)
    return {"student": run}


@dataclasses.dataclass(frozen=True)
class CosineGrid:
    """Even steps of the release's cosine schedule, log-SNR -20 to 20, as angles."""

    def __call__(self, steps: int, path: Path) -> tuple[float, ...]:
        bottom = np.arctan(np.exp(-10.0))
        spread = np.arctan(np.exp(10.0)) - bottom
        share = 1.0 - np.arange(steps) / steps
        return (*map(float, spread * share + bottom), 0.0)


WEIGHTS = {
    "max(snr, 1) on x0": {},
    "v": {"weight": weights.snr_plus_one},
    "constant": {"weight": weights.constant},
    "snr": {"weight": weights.snr},
}


def progressive(v: Vector) -> dict[str, Run]:
    options = v.options
    count = options["steps"]
    index = v.given("index")
    more = WEIGHTS[options["weight"]]
    if options["prediction"] == "edm":
        grid = KarrasPoints()
        np.testing.assert_allclose(
            np.asarray(grid(count, paths.edm()))[index], v.given("t"), rtol=1e-6
        )
    else:
        grid, more = CosineGrid(), {"grid": CosineGrid(), **more}
        # The file counts the steps from the data.
        index = count - 1 - index
    method = methods.progressive(steps=(count,), **more)
    draws = {"index": index, "eps": v.given("eps")}
    return {"student": Run(method, draws, v.networks(), v.data)}
