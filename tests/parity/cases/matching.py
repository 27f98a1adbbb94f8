"""Distribution matching, adversarial and restoration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from distilljax import methods
from distilljax.core.context import Context
from distilljax.core.method import Method
from distilljax.diffusion.times import EvenGrid, TableGrid
from distilljax.losses.metrics import PseudoHuberElement, half_mse
from distilljax.methods.fits import Fit
from tests.parity.vectors import Run, Vector, path_of, sampled


def start_grid(v: Vector) -> TableGrid:
    """One step from where the file's generator starts."""
    path = path_of(v.meta["networks"]["student"])[0]
    return TableGrid(((v.options.get("sigma_start", path.t_max),),))


def points(v: Vector, **names: str) -> dict[str, Any]:
    """Times and noises by owner of the draw, ``OWNER`` or ``OWNER__SUFFIX``."""
    out = {}
    for owner, of in names.items():
        owner, _, suffix = owner.partition("__")
        suffix = f"_{suffix}" if suffix else ""
        out[f"{owner}/t{suffix}"] = v.given(f"t_{of}")
        out[f"{owner}/eps{suffix}"] = v.given(f"eps_{of}")
    return out


def sample_draws(v: Vector) -> dict[str, Any]:
    """Draws of the one-step sample ``x``."""
    return {"x/case": 0, "x/start": v.given("start")}


TERMS = {
    "match": ("student", ("match",)),
    "fool": ("student", ("fool",)),
    "restore": ("student", ("restore",)),
    "fit": ("fake_score", ("fit",)),
    "tell_apart": ("fake_score", ("tell_apart",)),
    "student": ("student", None),
    "critic": ("fake_score", None),
}


def by_output(
    v: Vector, method: Method, draws: Mapping[str, Any], **changes: Any
) -> dict[str, Run]:
    """A run per output: the term of its name, or the whole loss of a phase."""
    networks, out = v.networks(), {}
    for output in v.outputs:
        phase, terms = TERMS[output]
        given = {"phase": phase, "terms": terms, **changes}
        out[output] = Run(method, draws, networks, v.data, **given)
    return out


def dmd2(v: Vector) -> dict[str, Run]:
    options = v.options
    method = methods.dmd2(
        steps=(1,),
        grid=start_grid(v),
        guidance=options["guidance"],
        gan_weight=options["gan_weight"],
        gan_critic_weight=options["gan_critic_weight"],
        features=options["trunk"],
        floor=1e-9,
    )
    owners = {"match": "match", "fool": "fool", "fit": "fit"}
    owners |= {"tell_apart__fake": "fake", "tell_apart__real": "real"}
    known = {k: of for k, of in owners.items() if f"in.t_{of}" in v.arrays}
    return by_output(v, method, {**sample_draws(v), **points(v, **known)})


def sid(v: Vector) -> dict[str, Run]:
    options = v.options
    scale = options.get("guidance", 1.0)
    fake = options.get("fake_guidance", 1.0)
    fit = Fit(guidance=options.get("fit_guidance", 1.0))
    method = methods.sid(
        grid=start_grid(v),
        alpha=options["alpha"],
        guidance=scale,
        fake_guidance=fake,
        fit=fit,
        floor=1e-5,
    )
    draws = {**sample_draws(v), **points(v, fisher="match", fit="fit")}
    return by_output(v, method, draws)


def diff_instruct(v: Vector) -> dict[str, Run]:
    method = methods.diff_instruct(
        grid=start_grid(v), guidance=v.options.get("guidance", 1.0)
    )
    return by_output(
        v, method, {**sample_draws(v), **points(v, match="match", fit="fit")}
    )


def f_distill(v: Vector) -> dict[str, Run]:
    options = v.options
    method = methods.f_distill(
        divergence=options["divergence"],
        bins=options["bins"] or 0,
        decay=options["ratio_ema"],
        ratio_clip=tuple(options["ratio_clip"]),
        grid=start_grid(v),
        guidance=options["guidance"],
        gan_weight=options["gan_weight"],
        features=options["trunk"],
        floor=1e-9,
    )
    networks, runs = v.networks(), {}
    for output in v.outputs:
        update = int(output.removeprefix("student") or 0)
        of = f"match{update}"
        draws = {**sample_draws(v), **points(v, match=of, fool=of)}
        memory = {"ratio_means": v.given(f"ratio_means{update - 1}")} if update else {}
        runs[output] = Run(method, draws, networks, v.data, memory=memory)
    return runs


def ladd(v: Vector) -> dict[str, Run]:
    options = v.options
    grid = start_grid(v)
    top = grid.starts[0][0]
    method = methods.ladd(
        steps=1,
        grid=grid,
        hinge=options["loss"] == "hinge",
        r1_weight=options["r1_weight"],
        r1_std=options["r1_std"],
        r1_clean=True,
    )
    path = path_of(v.meta["networks"]["student"])[0]
    # The official generator starts from noise alone, ours from noised data.
    data, sigma = path.alpha(np.float64(top)), path.sigma(np.float64(top))
    draws = {
        "x/step": np.zeros(v.batch_size),
        "x/eps": v.given("start") - data / sigma * v.given("x0"),
        "r1/perturbation": v.given("r1_perturbation"),
        **points(v, fool="fool", r1="real"),
        **points(v, tell_apart__fake="fake", tell_apart__real="real"),
    }
    networks = v.networks()
    return {
        output: Run(method, draws, networks, v.data, phase=output)
        for output in v.outputs
    }


@dataclasses.dataclass(frozen=True)
class Step:
    """The student's step from the file's states, in place of those of its rollout."""

    of: Vector

    def __call__(self, ctx: Context) -> dict[str, Any]:
        student = ctx.nets.student
        x_t, t, s = (self.of.given(name) for name in ("x_t", "t", "s"))
        x0 = student.flow_map(ctx.cond, two_time=False)(x_t, t, 0.0)
        return {"x0": x0, "x_s": student.path.jump(x0, x_t, t, s), "t": t, "s": s}


def tdm(v: Vector) -> dict[str, Run]:
    options = v.options
    huber, top = options["huber"], options.get("total_steps", 800) / 1000
    method = methods.tdm(
        steps=(options["steps"],),
        grid=EvenGrid(top),
        separate=options["separate"],
        guidance=options["guidance"],
        metric=half_mse if huber is None else PseudoHuberElement(huber),
        margins=(0.0, 0.0),
        snr_cap=5.0,
        floor=1e-9,
    )
    phases = [p._replace(draws={"step": Step(v)}) for p in method.phases]
    method = method._replace(phases=tuple(phases))
    t, s, tau = (v.given(name) for name in ("t", "s", "tau"))
    top = t if options["separate"] else top
    draws = {"t": (tau - s) / (top - s), "eps": v.given("eps")}
    return by_output(v, method, draws)


def tsd_sr(v: Vector) -> dict[str, Run]:
    options = v.options
    method = methods.tsd_sr(
        start="low",
        share=options["share"],
        weights=tuple(options["weights"]),
        spacing=options["spacing"],
        guidance=options["guidance"],
        fake_guidance=options["fake_guidance"],
        raw_velocity=True,
        regression_weight=2.0,
    )
    draws = {"match/t": v.given("t"), "match/eps": v.given("eps")}
    networks, data = v.networks(), {**v.data, "low": v.given("low")}
    names = {"student": "match", "restore": "restore"}
    return {
        output: Run(method, draws, networks, data, terms=(names[output],))
        for output in v.outputs
    }


def law_times(v: Vector) -> dict[str, Any]:
    """Times of the laws that a method's terms draw from by default."""
    return {
        output: sampled(getattr(methods, spec["method"])(), spec["draw"], v)
        for output, spec in v.meta["laws"].items()
    }


dmd2_laws = sid_laws = diff_instruct_laws = f_distill_laws = ladd_laws = law_times
