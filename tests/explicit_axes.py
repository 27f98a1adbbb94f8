"""Run in its own process on 8 fake devices; prints what `test_explicit_axes` checks.

The mathematics under a mesh of explicit axes, `jax.make_mesh`'s default, where types
carry shardings and whatever would need a guess is an error.
"""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from distilljax import (
    corrections,
    fields,
    flow_maps,
    losses,
    metrics,
    paths,
    predictions,
    sampling,
    solvers,
    times,
    transforms,
)
from distilljax.losses import divergences

BATCH, SIZE = 8, 4
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


WEIGHTS = {"in": normal(SIZE, 8) / 2, "time": normal(2, 8), "out": normal(8, SIZE) / 3}
DATA = {
    "x": normal(BATCH, SIZE),
    "y": normal(BATCH, SIZE),
    "z": normal(BATCH, SIZE),
    "t": rng.uniform(0.6, 0.9, BATCH).astype(np.float32),
    "m": rng.uniform(0.4, 0.5, BATCH).astype(np.float32),
    "s": rng.uniform(0.1, 0.3, BATCH).astype(np.float32),
    "logits": normal(BATCH, 3),
    "label": rng.integers(0, 3, BATCH).astype(np.int32),
}
LINEAR = paths.linear()


def network(w, x, t, s=None):
    t = jnp.broadcast_to(t, x.shape[:1])
    s = jnp.zeros_like(t) if s is None else jnp.broadcast_to(s, t.shape)
    code = jnp.stack([t, t - s], -1)
    return jnp.tanh(x @ w["in"] + code @ w["time"]) @ w["out"]


def parts(w, path=LINEAR):
    student = flow_maps.AffineFlowMap(
        lambda x, t, s: network(w, x, t, s), path, predictions.VELOCITY
    )
    return student, lambda x, t: network(w, x, t)


def loss_cases():
    """Every function of `distilljax.losses` as ``(weights, data) -> arrays``."""

    def mapped(of):
        return lambda w, d: metric_of(of(*parts(w), d))

    def metric_of(c):
        return c, corrections.regress(c)

    def plain(of):
        return lambda w, d: of(d)

    out = {
        "eulerian": mapped(
            lambda f, v, d: losses.eulerian(f, d["y"], d["x"], d["t"], d["s"])
        ),
        "eulerian/difference": mapped(
            lambda f, v, d: losses.eulerian(
                f,
                d["y"],
                d["x"],
                d["t"],
                0.0,
                derivative=losses.finite_difference(1e-2),
            )
        ),
        "exact": lambda w, d: losses.exact(
            lambda x: network(w, x, d["t"]), (d["x"],), (d["y"],)
        ),
        "lagrangian": mapped(
            lambda f, v, d: losses.lagrangian(f, v, d["x"], d["t"], d["s"])
        ),
        "dual_end": mapped(
            lambda f, v, d: losses.dual_end(f, v, d["y"], d["x"], d["t"], d["s"])
        ),
        "consistency": mapped(
            lambda f, v, d: losses.consistency(f, f, d["x"], d["t"], d["y"], d["m"])
        ),
        "semigroup": mapped(
            lambda f, v, d: losses.semigroup(f, f, d["x"], d["t"], d["m"], d["s"])
        ),
        "two_jumps": lambda w, d: losses.two_jumps(
            *(parts(w)[0],) * 2, d["x"], d["t"], d["m"], d["s"], clip=0.5
        ),
        "score_gap": plain(
            lambda d: metric_of(losses.score_gap(d["x"], d["y"], d["z"]))
        ),
        "gap_from_eps": plain(
            lambda d: losses.gap_from_eps(d["x"], d["y"], LINEAR, d["t"])
        ),
        "split_error": plain(
            lambda d: losses.split_error(d["x"], d["y"], d["z"], d["x"], LINEAR, d["t"])
        ),
        "fisher": plain(lambda d: losses.fisher(d["x"], d["y"], d["z"])),
        "learned_weight": plain(lambda d: losses.learned_weight(d["t"], d["s"])),
        "approximate_r1": plain(
            lambda d: losses.approximate_r1(d["logits"], 2.0 * d["logits"], 0.1)
        ),
    }
    for name in ("nonsaturating", "hinge", "relativistic"):
        critic = getattr(losses, f"discriminator_{name}")
        out[f"discriminator_{name}"] = plain(
            lambda d, f=critic: f(d["logits"], 1.0 - d["logits"])
        )
        maker = getattr(losses, f"generator_{name}")
        pair = name == "relativistic"
        out[f"generator_{name}"] = plain(
            lambda d, f=maker, p=pair: f(*([d["logits"]] * p), d["logits"] ** 2)
        )
    for name, kind in divergences.DIVERGENCES.items():
        out[f"divergence/{name}"] = plain(
            lambda d, k=kind: (k.f(jnp.exp(d["t"])), k.h(jnp.exp(d["t"])))
        )
    return out


def algebra_cases():
    """Corrections, metrics, transforms, guidance and changes of path."""

    def correction(d):
        return corrections.correct(d["x"], d["y"], d["t"])

    changes = {
        "normalize_tangent": lambda c, d: transforms.normalize_tangent(c),
        "clip": lambda c, d: transforms.clip(c),
        "scale": lambda c, d: transforms.scale(c, d["s"]),
        "adaptive_l2": lambda c, d: transforms.adaptive_l2(c),
        "normalize_by_error": lambda c, d: transforms.normalize_by_error(
            c, reference=d["z"]
        ),
        "weight_by_density_ratio": lambda c, d: transforms.weight_by_density_ratio(
            c, d["logits"][:, 0], jnp.sqrt
        ),
        "weight_by_reward": lambda c, d: transforms.weight_by_reward(c, d["t"]),
        "group_normalize": lambda c, d: transforms.group_normalize(c, 2),
        "drop_nonfinite": lambda c, d: transforms.drop_nonfinite(c),
    }
    measures = {
        "half_mse": metrics.half_mse,
        "sum_squares": metrics.sum_squares,
        "norm": metrics.norm,
        "mse_cosine": metrics.mse_cosine,
        "vector": metrics.PseudoHuberVector(0.1),
        "element": metrics.PseudoHuberElement(0.1),
        "features": metrics.FeatureMetric(lambda x: {"a": x, "b": x[:, :2] ** 2}),
    }
    out = {
        f"transform/{name}": lambda w, d, f=change: f(correction(d), d)
        for name, change in changes.items()
    }
    out |= {
        f"metric/{name}": lambda w, d, m=measure: corrections.regress(correction(d), m)
        for name, measure in measures.items()
    }
    out["toward"] = lambda w, d: corrections.toward(d["x"], d["y"])
    out["regress"] = lambda w, d: corrections.regress(correction(d))
    out["correct"] = lambda w, d: correction(d)
    out["skew"] = lambda w, d: divergences.skew(0.3).f(d["t"])
    out["from_value"] = lambda w, d: corrections.from_value(
        lambda x: jnp.sum(x**3, -1), d["x"]
    )
    out["guided"] = lambda w, d: fields.guided(
        lambda x, t: network(w, x, t), lambda x, t: x, d["t"],
        interval=(0.2, 0.8), rescale=0.5, max_norm=1.0,
    )(d["x"], d["m"])  # fmt: skip
    out["viewed"] = lambda w, d: fields.viewed(
        lambda x, t: network(w, x, t), LINEAR, "velocity", on=paths.trigflow(),
        as_kind="x0",
    )(d["x"], d["t"])  # fmt: skip
    ways = {
        "linear": LINEAR,
        "vp": paths.vp(),
        "vp_cosine": paths.vp_cosine(),
        "edm": paths.edm(),
        "trigflow": paths.trigflow(),
        "bridge": paths.bridge_residual(),
    }
    for name, path in ways.items():
        out[f"path/{name}"] = lambda w, d, p=path: (
            p.noise(d["x"], d["y"], d["t"], d["z"] if p.bridges else None),
            p.scale(d["t"]),
            p.time_of_angle(p.angle(d["t"])),
        )
    return out


def loop_cases():
    """Solvers and samplers: scans whose carries must keep their types."""
    out = {}
    noise = jax.random.key(3)
    for kind in (
        solvers.Euler(), solvers.Heun(), solvers.Midpoint(), solvers.FireFlow(),
        solvers.DDIM(), solvers.DPMSolverPP2M(), solvers.SDE(),
    ):  # fmt: skip
        out[f"solve/{type(kind).__name__}"] = lambda w, d, k=kind: solvers.solve(
            parts(w)[1], d["x"], (d["t"], d["m"], d["s"]), path=LINEAR, solver=k,
            key=noise, trajectory=True,
        )  # fmt: skip
    out["solve/even"] = lambda w, d: solvers.solve(
        parts(w)[1], d["x"], (0.9, 0.5, 0.1), path=LINEAR, solver=solvers.Euler()
    )
    out["ode_flow_map"] = lambda w, d: flow_maps.ode_flow_map(
        parts(w)[1], LINEAR, steps=3, rho=2.0
    )(d["x"], d["t"], d["s"])
    for rule in (
        sampling.Consistency(), sampling.Deterministic(), sampling.HopFirst(),
        sampling.Gamma(), sampling.SDE(),
    ):  # fmt: skip
        out[f"sample/{type(rule).__name__}"] = lambda w, d, r=rule: sampling.sample(
            parts(w)[0], d["x"], (1.0, 0.6, 0.3, 0.0), renoise=r, key=noise,
            trajectory=True,
        )  # fmt: skip
    out["sample/several"] = lambda w, d: sampling.sample(
        [parts(w)[0], lambda x, t, s: x * 0.5], d["x"], (1.0, 0.5, 0.0), path=LINEAR,
        key=noise,
    )  # fmt: skip
    return out


def law_cases():
    """Times, whose draws the caller reshards: they only must be equal."""
    laws = {
        "uniform": times.Uniform(),
        "logit_normal": times.LogitNormal(),
        "mixture": times.Mixture(((0.5, times.Uniform()), (0.5, times.LogitNormal()))),
        "choice": times.Choice((0.25, 0.5, 1.0)),
        "pair": times.Pair(),
        "interval": times.Interval(),
    }
    return {
        f"law/{name}": lambda w, d, f=law: f(jax.random.key(0), (BATCH,), LINEAR)
        for name, law in laws.items()
    }


def total(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


def results(cases, *arguments):
    """Outputs of all cases, and the gradient of the losses' squares: one program."""
    smooth = loss_cases()

    def together(w, d):
        out = {name: case(w, d) for name, case in cases.items()}
        return total({name: out[name] for name in smooth}), out

    return jax.jit(jax.grad(together, has_aux=True))(*arguments)


def far(wanted, found):
    """Largest gap, in units of the number where that is large."""
    pairs = zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True)
    return max(float(np.max(np.abs(a - b) / (1.0 + np.abs(a)))) for a, b in pairs)


def lost(tree):
    """Types of the outputs whose batch axis is split no more."""
    return [
        str(jax.typeof(leaf))
        for leaf in jax.tree.leaves(tree)
        if BATCH in leaf.shape
        and jax.typeof(leaf).sharding.spec[leaf.shape.index(BATCH)] != "data"
    ]


def main():
    mesh = jax.make_mesh((8,), ("data",))
    cases = {**loss_cases(), **algebra_cases(), **loop_cases()}
    slopes, wanted = results(cases, WEIGHTS, DATA)
    laws = {name: law(WEIGHTS, DATA) for name, law in law_cases().items()}
    with jax.set_mesh(mesh):
        split = jax.device_put(DATA, jax.NamedSharding(mesh, P("data")))
        whole = jax.device_put(WEIGHTS, jax.NamedSharding(mesh, P()))
        grads, found = results(cases, whole, split)
        drawn = {name: law(whole, split) for name, law in law_cases().items()}
    covered = {name.split("/")[0] for name in cases}
    public = (getattr(losses, name) for name in losses.__all__)
    made = {f.__name__ for f in public if inspect.isfunction(f)}
    rows = {
        "kinds": [kind.name for kind in mesh.axis_types],
        "gaps": {name: far(wanted[name], found[name]) for name in cases},
        "lost": {name: lost(found[name]) for name in cases},
        "gradients": {name: far(slopes[name], grads[name]) for name in slopes},
        "laws": {name: far(laws[name], drawn[name]) for name in laws},
        "missing": sorted(made - covered),
    }
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
