"""pi-Flow."""

from __future__ import annotations

from distilljax import methods
from tests.parity.vectors import Run, Vector


def pi_flow(v: Vector) -> dict[str, Run]:
    options = v.options
    method = methods.pi_flow(
        steps=options["steps"],
        policy=options["policy"],
        states=options["states"],
        substeps=options["substeps_per_unit"] // options["steps"],
        dropout=options["dropout"],
        teacher_ratio=options["teacher_ratio"],
    )
    draws = {
        "segment": v.given("place"),
        "eps": v.given("eps"),
        **{name: v.given(name) for name in ("student_way", "teacher_way", "drop")},
    }
    # Roles ask for networks by the name of the role first.
    return {"student": Run(method, draws, v.networks(), v.data)}
