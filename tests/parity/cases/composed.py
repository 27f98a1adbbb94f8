"""rCM and SANA-Sprint."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from distilljax import methods, paths
from distilljax.core.binding import Bound, Nets, Network
from distilljax.core.context import Context
from distilljax.core.draws import Among
from distilljax.diffusion.times import TableGrid
from tests.parity.vectors import Run, Vector

Array = jax.Array
TRIG = paths.trigflow()


def rcm(v: Vector) -> dict[str, Run]:
    options = v.options
    steps = options["steps"]
    times = tuple(v.arrays["in.simulation"].tolist())
    times = (min(times[0], TRIG.t_max), *times[1:])
    method = methods.rcm(
        guidance=options["guidance"],
        scm_weight=options["scm_weight"],
        dmd_weight=options["dmd_weight"],
        warmup=options["warmup"],
        steps=(steps,),
        grid=TableGrid((times,)),
        dmd_options={"floor": options["floor"]},
        path=TRIG,
    )
    draws = {
        **{f"{name}/t": v.given(f"t_{name}") for name in ("tangent", "match", "fit")},
        **{f"{n}/eps": v.given(f"eps_{n}") for n in ("tangent", "match", "fit")},
        "x/start": v.given("start"),
        "x/case": jnp.asarray(steps - 1),
        **{f"x/renoise{i}": v.given(f"renoise{i}") for i in range(steps - 1)},
    }

    def run(phase: str, *terms: str, step: int) -> Run:
        networks = v.networks()
        return Run(method, draws, networks, v.data, phase, terms or None, step)

    past = max(options["step"], options["warmup"])
    return {
        "student": run("student", step=past),
        "tangent": run("student", "tangent", step=options["step"]),
        "match": run("student", "match", step=past),
        "fit": run("fake_score", "fit", step=past),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded(Context):
    """A context that keeps the times it draws, and takes the last of every choice."""

    kept: dict[str, Array] = dataclasses.field(default_factory=dict)

    def times(self, name, law, path=None):
        found = super().times(name, law, path)
        self.kept[f"{self.owner}/{name}"] = found
        return found

    def choice(self, name, count):
        return count - 1


def rcm_laws(v: Vector) -> dict[str, Array]:
    """Times that the terms draw, and those at which the rollout asks the student."""
    laws = v.meta["laws"]
    method = methods.rcm(steps=tuple(laws["simulation1"]["options"]["steps"]))
    asked: list[Array] = []

    def apply(params, x, t, cond=None, s=None, **options):
        asked.append(t)
        return jnp.zeros_like(x)

    net = Network("recorder", apply, lambda key: {}, TRIG, "F")
    nets = Nets({role: Bound(role, net, {}) for role in method.roles})
    count = 100_000
    data = {"x0": jnp.zeros((count, 1))}
    zero = jnp.zeros((), jnp.int32)
    key = jax.random.key(0)
    ctx = Recorded(nets, data, zero, zero, {}, key, count, (1,))
    critic, student = method.phases
    # Without tracing, the recorder sees numbers.
    with jax.disable_jit():
        data["x"] = student.draws["x"](ctx.of("x"))
        simulated = list(asked)
        for term in critic.terms + student.terms:
            term.loss(ctx.of(term.name))
    found = {}
    for name, law in laws.items():
        if law["draw"] == "simulation":
            found[name] = simulated[law["call"]]
        else:
            found[name] = jnp.tan(ctx.kept[law["draw"]])
    return found


def sana_sprint(v: Vector) -> dict[str, Run]:
    options = v.options
    scales = (4.0, 4.5, 5.0)
    method = methods.sana_sprint(
        adversarial_weight=options["adversarial_weight"],
        misaligned=options["misaligned"],
        guidance=Among(scales),
        warmup=options["warmup"],
        path=paths.trigflow(sigma_d=options["sigma_d"]),
    )
    names = ("tangent", "fool", "fake", "real")
    own = {"tangent": "tangent/{}", "fool": "fool/{}"}
    draws = {
        own.get(n, "tell_apart/{}_" + n).format(kind): v.given(f"{kind}_{n}")
        for n in names
        for kind in ("t", "eps")
    }
    draws |= {f"x/{kind}": v.given(f"{kind}_jump") for kind in ("t", "eps")}
    # The official run moved the noised data themselves to their neighbours.
    draws |= {
        f"tell_apart/{kind}_misaligned": jnp.roll(v.given(f"{kind}_real"), 1, 0)
        for kind in ("t", "eps")
    }
    draws["guidance"] = jnp.searchsorted(jnp.asarray(scales), v.given("guidance"))

    def run(phase: str, *terms: str) -> Run:
        networks = v.networks()
        step = options["step"]
        return Run(method, draws, networks, v.data, phase, terms or None, step)

    return {
        "student": run("student"),
        "tangent": run("student", "tangent"),
        "log_weight": run("student", "tangent"),
        "fool": run("student", "fool"),
        "discriminator": run("discriminator"),
    }
