"""Consistency models: sCM, CM, iCT, ECT, LCM, CTM."""

from __future__ import annotations

from distilljax import methods, paths, transforms
from distilljax.times import Ramp
from tests.parity.vectors import Run, Vector


def scm(v: Vector) -> dict[str, Run]:
    options = v.options
    tangent = transforms.normalize_tangent
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
