"""Low-rank adapters: a role whose parameters are a shared base plus a small product.

    adapters = lora(backbone, rank=16)
    method = with_lora(dmd2(), ("student", "fake_score"))
    networks = {"backbone": backbone, "lora": adapters, ...}

The adapted roles own no parameters: they are derived, in every update, from the base
that all of them share and from the adapter that is trained in their place.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from distilljax.core.binding import Network
from distilljax.core.method import Method, Phase, Role, check
from distilljax.runtime.errors import unknown

Array = jax.Array


def lora(
    network: Network,
    *,
    rank: int = 8,
    match: str = r"kernel$",
    name: str = "lora",
) -> Network:
    """Adapters for the kernels of a network, zero products at first.

    A kernel ``[..., in, out]`` gets ``down [..., in, rank]``, Gaussian with standard
    deviation ``in ** -0.5``, and ``up [..., rank, out]``, zero. Leading axes are a
    stack of layers; those of a convolution ``[k, k, in, out]`` are its window, which
    ``down`` covers and ``up [rank, out]`` does not.

    Args:
      network: whose parameters are adapted.
      rank: of the products; kernels with fewer inputs or outputs are left alone.
      match: regular expression searched in the parameters' paths, joined by ``/``.
      name: how errors call it.

    Returns:
      A network without path, only to hold the adapters.

    Raises:
      ValueError: if no kernel matches.

    References:
      Hu et al., LoRA, 2021, arXiv:2106.09685, eq. 3.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    shapes: dict[str, Any] = traverse_util.flatten_dict(
        jax.eval_shape(network.init, jax.random.key(0)), sep="/"
    )
    pattern = re.compile(match)
    chosen = {
        path: leaf
        for path, leaf in shapes.items()
        if leaf.ndim >= 2 and min(leaf.shape[-2:]) >= rank and pattern.search(path)
    }
    if not chosen:
        raise ValueError(
            f"no kernel of network {network.name!r} matches {match!r} with at least "
            f"{rank} inputs and outputs; it has {sorted(shapes)}"
        )

    def init(key: Array) -> Any:
        out = {}
        for i, (path, leaf) in enumerate(sorted(chosen.items())):
            *lead, inputs, outputs = leaf.shape
            down = jax.random.normal(
                jax.random.fold_in(key, i), (*lead, inputs, rank), leaf.dtype
            )
            stack = () if leaf.ndim == 4 else tuple(lead)
            out[path.replace("/", ".")] = {
                "down": down * inputs**-0.5,
                "up": jnp.zeros((*stack, rank, outputs), leaf.dtype),
            }
        return out

    return Network(name, None, init)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """``base + scale * down @ up``, a `Role.derive`.

    Attributes:
      base: role whose parameters are adapted; nothing flows back to it unless it is
        trained.
      adapter: role that holds the adapters.
      scale: factor of the products, the paper's ``alpha / rank``.
    """

    base: str
    adapter: str
    scale: float = 1.0

    @property
    def reads(self) -> tuple[str, ...]:
        """Roles that the parameters come from."""
        return (self.base, self.adapter)

    def __call__(self, params: Mapping[str, Any], step: Array) -> Any:
        """Parameters of the structure of the base."""
        flat: dict[str, Any] = traverse_util.flatten_dict(params[self.base], sep="/")
        for path, pair in params[self.adapter].items():
            kernel = flat[path.replace(".", "/")]
            product = jnp.matmul(
                pair["down"], pair["up"], preferred_element_type=jnp.float32
            )
            flat[path.replace(".", "/")] = kernel + (self.scale * product).astype(
                kernel.dtype
            )
        return traverse_util.unflatten_dict(flat, sep="/")


def with_lora(
    method: Method,
    roles: Sequence[str] = ("student",),
    *,
    base: str = "teacher",
    scale: float = 1.0,
    network: str = "lora",
) -> Method:
    """The method with adapters trained in place of whole networks.

    Args:
      method: any method; compose first, adapt then.
      roles: trained roles that become ``base`` plus an adapter of their own, the role
        ``<role>_lora``.
      base: role that they share, usually the frozen teacher.
      scale: see `LoRA`.
      network: key of the adapters' network, see `lora`.

    Returns:
      The method.

    Raises:
      ValueError: for a role that the method does not have or does not train, or a base
        that is not there.
    """
    players = dict(method.roles)
    if base not in players:
        raise ValueError(unknown("role", base, players))
    for role in roles:
        if role not in method.trained:
            raise ValueError(unknown("trained role", role, method.trained))
    names = {role: f"{role}_lora" for role in roles}
    for role, adapter in names.items():
        players[adapter] = Role(network, init="random")
        players[role] = players[role]._replace(
            derive=LoRA(base, adapter, scale), follow=None
        )
    for name, player in list(players.items()):
        follow = player.follow
        if follow is None or follow.of not in names:
            continue
        # What follows an adapted role follows its adapter on the same base.
        leader, shadow = names[follow.of], f"{name}_lora"
        players[shadow] = Role(network, init=leader, follow=follow._replace(of=leader))
        players[name] = player._replace(derive=LoRA(base, shadow, scale), follow=None)

    def adapted(phase: Phase) -> Phase:
        return phase._replace(trains=tuple(names.get(r, r) for r in phase.trains))

    return check(method.with_phases(adapted)._replace(roles=players))
