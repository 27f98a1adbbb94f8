"""Consistency models: sCM, CM, iCT, ECT, LCM, CTM."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from distilljax import methods, metrics, paths, solvers, times, transforms
from distilljax.diffusion.times import KarrasPoints, Ramp
from distilljax.methods import curricula
from distilljax.methods.trajectory.ctm import _hops
from tests.parity.vectors import Run, Vector, index_draw, sampled

EDM = paths.edm()


def scm(v: Vector) -> dict[str, Run]:
    options = v.options
    norms = {"vector": transforms.l2_norm, "rms": transforms.rms_norm}
    tangent = functools.partial(
        transforms.normalize_tangent,
        constant=options["c"],
        norm=norms[options["norm"]],
    )
    method = methods.scm(
        teacher=options["teacher"],
        guidance=options["guidance"],
        warmup=Ramp(options["warmup"]),
        learned_weight=options["learned_weight"],
        prior=options["prior"],
        tangent=tangent,
        path=paths.trigflow(sigma_d=options["sigma_d"]),
    )
    draws = {"t": v.given("t"), "eps": v.given("eps")}
    networks = v.networks()
    return {
        output: Run(method, draws, networks, v.data, step=options["step"])
        for output in v.outputs
    }


def scm_laws(v: Vector) -> dict[str, Any]:
    return {"tangent": sampled(methods.scm(), "tangent/t", v)}


def _segments(v: Vector, count: int) -> dict[str, Any]:
    """The draws of a discrete consistency model, whose times must be the file's."""
    t, s = (np.asarray(v.given(name)) for name in ("t", "s"))
    grid = np.asarray(KarrasPoints()(count, EDM))
    index = np.asarray(v.given("index"))
    np.testing.assert_allclose(grid[index], t, rtol=1e-6)
    np.testing.assert_allclose(grid[index + 1], s, rtol=1e-6)
    return {"index": v.given("index"), "eps": v.given("eps")}


def cm_cd(v: Vector) -> dict[str, Run]:
    solver = {"heun": solvers.Heun(), "euler": solvers.Euler()}[v.options["solver"]]
    count = v.options["points"] - 1
    method = methods.cm_cd(segments=count, solver=solver)
    run = Run(method, _segments(v, count), v.networks(), v.data)
    return {"student": run}


def cm_ct(v: Vector) -> dict[str, Run]:
    step, count = v.options["step"], v.options["points"] - 1
    draws, networks = _segments(v, count), v.networks()
    given = {
        "student": methods.cm_ct(),
        "student_own_grid": methods.cm_ct(segments=count, grid=KarrasPoints()),
    }
    return {
        output: Run(method, draws, networks, v.data, step=step)
        for output, method in given.items()
    }


def cm_ct_tables(v: Vector) -> dict[str, Any]:
    options, steps = v.options, v.given("step")
    segments = curricula.RootSegments(
        options["iterations"], options["start_scales"], options["end_scales"]
    )
    decay = curricula.SegmentDecay(
        segments, options["start_ema"], options["start_scales"]
    )
    return {
        "segments": jax.vmap(segments)(steps),
        "ema": jax.vmap(decay)(steps),
        "grid": np.asarray(KarrasPoints()(2, EDM)),
    }


def ict(v: Vector) -> dict[str, Run]:
    method = methods.ict(segments=curricula.DoublingSegments(v.options["steps"]))
    draws = {"level": v.given("u"), "eps": v.given("eps")}
    run = Run(method, draws, v.networks(), v.data, step=v.options["step"])
    return {"student": run}


def ect(v: Vector) -> dict[str, Run]:
    options = v.options
    gap = curricula.Shrink(8, stages=8, q=options["q"])
    c = options["c"]
    method = methods.ect(
        gap=gap,
        k=options["k"],
        b=options["b"],
        metric=metrics.PseudoHuberVector(c) if c else metrics.norm,
    )
    draws = {"t": v.given("t"), "eps": v.given("eps")}
    run = Run(method, draws, v.networks(), v.data, step=options["stage"])
    return {"student": run}


def ect_laws(v: Vector) -> dict[str, Any]:
    return {"t": sampled(methods.ect(), "agree/t", v)}


def lcm(v: Vector) -> dict[str, Run]:
    steps = v.options["steps"]
    method = methods.lcm(
        segments=steps,
        metric=metrics.PseudoHuberElement(v.options["huber"]),
        embed=True,
    )
    # The file counts the steps from the data.
    index = steps - 1 - v.given("index")
    draws = {"index": index, "eps": v.given("eps")}
    data = {**v.data, "guidance": v.given("guidance")}
    return {"student": Run(method, draws, v.networks(), data)}


def _hops_key(hops: int, most: int) -> jax.Array:
    """A key from which CTM draws a number of steps."""
    keys = jax.random.split(jax.random.key(0), 4096)

    def drawn(key: jax.Array) -> jax.Array:
        return _hops(SimpleNamespace(key=lambda name: key), most)

    return keys[int(np.argmax(np.asarray(jax.vmap(drawn)(keys)) == hops))]


def ctm(v: Vector) -> dict[str, Run]:
    count, hops = v.options["points"] - 1, v.options["hops"]
    first, middle, last = (np.asarray(v.given(n)) for n in ("first", "middle", "last"))
    np.testing.assert_array_equal(middle, first + hops)
    grid = tuple(map(float, v.given("grid")))
    np.testing.assert_allclose(KarrasPoints()(count, EDM), grid, rtol=1e-6)
    draws = {
        "ends/hops": _hops_key(hops, count),
        "first": index_draw(first, 0, count - hops),
        "last": index_draw(last, first + hops, count),
        "ends/eps": v.given("eps"),
        "denoise/t": v.given("t_dsm"),
        "denoise/eps": v.given("eps_dsm"),
    }
    own = times.KarrasPoints(sigma_min=grid[-1], sigma_max=grid[0])
    runs = {
        "student": (methods.ctm(segments=count), "agree"),
        "student_own_grid": (methods.ctm(segments=count, grid=own), "agree"),
        "denoise": (methods.ctm(segments=count), "denoise"),
    }
    networks = v.networks()
    return {
        output: Run(method, draws, networks, v.data, terms=(term,))
        for output, (method, term) in runs.items()
    }
