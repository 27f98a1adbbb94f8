"""The suite ``mixture``: a Gaussian mixture whose field is the teacher, without error.

The network sees the data shifted and scaled to mean 0 and standard deviation 1 per
element; samples are written and judged in the units of the mixture.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distilljax import networks
from distilljax.bench.entries import missing, mixture_entries, start_entry
from distilljax.bench.suites import BATCH, Suite, no_reward
from distilljax.bench.truth import Truth
from distilljax.core.binding import Network
from distilljax.core.method import Method
from distilljax.diffusion import paths
from distilljax.diffusion.oracles import GaussianMixture
from distilljax.diffusion.oracles import network as exact_network
from distilljax.runtime import storage

COMPONENTS, SAMPLES = 8, 4096
FIELDS = ("weights", "means", "stds")


def draw_mixture(seed: int = 0, dimension: int = 2) -> GaussianMixture:
    """A mixture of 8 Gaussians with unequal weights and widths.

    Means are normal with standard deviation 1 per element, but no two nearer to each
    other than three times their widths; widths lie in [0.08, 0.3], weights in a ratio
    of at most 5.

    Args:
      seed: of everything.
      dimension: of the data, at least 1.
    """
    rng = np.random.default_rng((seed, dimension))
    stds = rng.uniform(0.08, 0.3, COMPONENTS)
    means: list[np.ndarray] = []
    while len(means) < COMPONENTS:
        new = rng.normal(size=dimension)
        widths = stds[: len(means)] + stds[len(means)]
        gaps = [float(np.linalg.norm(new - old)) for old in means]
        # On the line there may be no room.
        if dimension == 1 or all(
            g > 3.0 * w for g, w in zip(gaps, widths, strict=True)
        ):
            means.append(new)
    weights = rng.uniform(0.2, 1.0, COMPONENTS)
    return of_arrays(weights, np.stack(means), stds)


def read_mixture(path: str | os.PathLike) -> GaussianMixture:
    """A mixture from an ``.npz`` with ``weights [K]``, ``means [K, D]``, ``stds [K]``.

    Raises:
      ValueError: if one is missing, of another shape, not finite or not positive.
    """
    where = epath.Path(path)
    if not where.is_file():
        raise ValueError(f"there is no oracle {where}")
    found = storage.load_arrays(where)
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise ValueError(
            f"{where} lacks {', '.join(missing)}: an oracle holds weights [K], means "
            f"[K, D] and stds [K], and this file {sorted(found)}"
        )
    weights, means, stds = (np.asarray(found[name], float) for name in FIELDS)
    try:
        return of_arrays(weights, means, stds)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def of_arrays(
    weights: np.ndarray, means: np.ndarray, stds: np.ndarray
) -> GaussianMixture:
    """A checked mixture of vectors; weights are divided by their sum.

    Raises:
      ValueError: on shapes that do not fit, and values not finite or not positive.
    """
    count = len(weights) if np.ndim(weights) == 1 else 0
    if not count or np.ndim(means) != 2 or len(means) != count:
        raise ValueError(
            "an oracle holds weights [K], means [K, D] and stds [K], got shapes "
            f"{np.shape(weights)}, {np.shape(means)} and {np.shape(stds)}"
        )
    if np.shape(stds) != (count,):
        raise ValueError(
            f"stds must be [{count}], one for each weight, got {np.shape(stds)}"
        )
    for name, value in (("weights", weights), ("stds", stds)):
        if not (np.isfinite(value).all() and (value > 0).all()):
            raise ValueError(f"{name} must be positive, got {value}")
    if not np.isfinite(means).all():
        raise ValueError("means must be finite")
    shares = np.asarray(weights) / np.sum(weights)
    return GaussianMixture(
        *(jnp.asarray(v, jnp.float32) for v in (shares, means, stds))
    )


@dataclasses.dataclass(frozen=True)
class Units:
    """``z = (x - shift) / scale``.

    Attributes:
      shift: mean of the data ``[D]``.
      scale: root mean square standard deviation over elements.
    """

    shift: np.ndarray
    scale: float

    @classmethod
    def of(cls, oracle: GaussianMixture) -> Units:
        """Those in which a mixture has mean 0 and variance 1 per element."""
        weights, means, stds = (np.asarray(v, np.float64) for v in oracle)
        shift = weights @ means
        spread = weights @ ((means - shift) ** 2).mean(1) + weights @ stds**2
        return cls(shift, float(np.sqrt(spread)))

    def inner(self, oracle: GaussianMixture) -> GaussianMixture:
        """The mixture in these units."""
        weights, means, stds = (np.asarray(v, np.float64) for v in oracle)
        return of_arrays(weights, (means - self.shift) / self.scale, stds / self.scale)

    def outer(self, z: np.ndarray) -> np.ndarray:
        """Samples in the mixture's units."""
        return np.asarray(z * self.scale + self.shift, np.float32)


def exact_teacher(oracle: GaussianMixture, backbone: Network) -> Network:
    """The exact velocity, with the taps of a network.

    Methods that judge features need a teacher with features; they are those of the
    network that students start from, whose parameters are this network's. No other use
    of the parameters is made.
    """
    path, features = backbone.path, backbone.apply
    assert path is not None
    assert features is not None
    exact = exact_network(oracle, path, "velocity")
    field = exact.apply
    assert field is not None

    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        out = field({}, x, t)
        if not taps:
            return out
        return out, features(params, x, t, cond, taps=True, rng=rng)[1]

    return dataclasses.replace(
        exact,
        name="exact teacher",
        apply=apply,
        init=backbone.init,
        capabilities=frozenset({"jvp", "taps"}),
    )


def replaceable_teacher(oracle: GaussianMixture, backbone: Network) -> Network:
    """The exact velocity while all parameters are 0, then the backbone of them.

    For methods whose teacher is replaced by a student after a while.
    """
    exact, own = exact_teacher(oracle, backbone).apply, backbone.apply
    assert exact is not None
    assert own is not None

    def apply(params, x, t, cond=None, s=None, *, taps=False, rng=None):
        if taps:
            return own(params, x, t, cond, taps=True, rng=rng)
        replaced = jnp.array([jnp.any(leaf != 0) for leaf in jax.tree.leaves(params)])
        return jnp.where(
            jnp.any(replaced), own(params, x, t, cond, rng=rng), exact(params, x, t)
        )

    return dataclasses.replace(backbone, name="replaceable teacher", apply=apply)


def is_replaced(method: Method) -> bool:
    """Whether the teacher of a method becomes another network."""
    return "teacher" in method.roles and method.roles["teacher"].follow is not None


def given(method: Method, start: Any) -> dict[str, Any]:
    """Parameters given: see `exact_teacher` and `replaceable_teacher`."""
    if is_replaced(method):
        zeros = jax.tree.map(jnp.zeros_like, start)
        return {"teacher": zeros, "student": start}
    return {"teacher": start}


def players(
    method: Method, teacher: Network, backbone: Network, sizes: dict[str, Any]
) -> dict[str, Network]:
    """Networks by key for a method around one backbone."""
    shape = sizes["sample_shape"]
    built = {"backbone": backbone, "teacher": teacher}
    twice = {n for n, role in method.roles.items() if "second_time" in role.needs}
    if "student" in twice:
        # A copy of the student has its network.
        twice |= {n for n, role in method.roles.items() if role.init == "student"}
    if twice:
        two_time = networks.mlp(**sizes, second_time=True)
        built |= dict.fromkeys(twice, two_time)
    taps = (jnp.zeros((1, sizes["width"])),) * sizes["blocks"]
    if "discriminator" in method.roles:
        built["discriminator"] = networks.head(
            taps, width=64, second_time="discriminator" in twice
        )
    if "log_weight" in method.roles:
        built["log_weight"] = networks.log_weight()
    if method.roles["student"].network == "policy":
        built["policy"] = networks.policy(backbone, shape)
    if "reward" in method.roles:
        built["reward"] = no_reward()
    return built


def mixture(
    *,
    oracle: str | os.PathLike | GaussianMixture | None = None,
    oracle_seed: int = 0,
    dimension: int = 2,
    samples: int = SAMPLES,
) -> Suite:
    """The suite.

    Args:
      oracle: a mixture, or the ``.npz`` of one; default one drawn from a seed.
      oracle_seed: that seed.
      dimension: of the mixture drawn.
      samples: of a seed, judged against as many exact ones.

    Raises:
      ValueError: on an oracle that is none, or a dimension below 1.
    """
    if dimension < 1:
        raise ValueError(f"dimension must be at least 1, got {dimension}")
    if oracle is None:
        outer = draw_mixture(oracle_seed, dimension)
    elif isinstance(oracle, GaussianMixture):
        outer = oracle
    else:
        outer = read_mixture(oracle)
    units = Units.of(outer)
    inner = units.inner(outer)
    shape = tuple(outer.means.shape[1:])
    small = shape[0] <= 8
    width = 64 if small else 128
    sizes = {
        "sample_shape": shape,
        "width": width,
        "hidden": 2 * width,
        "blocks": 3,
        "embedding": 64,
    }
    backbone = networks.mlp(**sizes)
    teacher = exact_teacher(inner, backbone)
    renewed = replaceable_teacher(inner, backbone)

    judge = Truth(outer, inner, units, paths.linear(), samples)

    def draw(key, lead):
        count = int(np.prod(lead))
        return {"x0": inner.sample(key, count).reshape(*lead, *shape)}

    return Suite(
        name="mixture",
        settings={
            "weights": np.asarray(outer.weights).round(7).tolist(),
            "means": np.asarray(outer.means).round(7).tolist(),
            "stds": np.asarray(outer.stds).round(7).tolist(),
            "network": {k: v for k, v in sizes.items() if k != "sample_shape"},
        },
        sample_shape=shape,
        headline="energy_distance",
        batch_size=BATCH,
        budget=8_000_000,
        start=start_entry(),
        pretraining=6_000_000,
        # Tangents diverge in a wider network under the rates of the narrow one.
        entries=mixture_entries(rate=1.0 if small else 0.4),
        missing=missing(),
        networks=lambda method: players(
            method, renewed if is_replaced(method) else teacher, backbone, sizes
        ),
        given=given,
        counted=lambda method: players(method, backbone, backbone, sizes),
        backbone=backbone,
        draw=draw,
        judge=judge,
        original=units.outer,
        floor=lambda _, seed: judge.exact(seed),
        floor_name="exact samples",
        # The distance of a few sets to a reference scatters by half of itself.
        floor_draws=16,
        teacher=lambda eps: units.outer(judge.flow(eps)),
    )
