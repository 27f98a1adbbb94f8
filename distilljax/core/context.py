"""The one argument of a term: networks, data and named randomness.

Draw noise and times only through the context. It constrains them to the batch sharding;
a data-free phase that splits its own key silently replicates the whole computation on
every device, and no test of values can see it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distilljax.core.binding import Nets, told
from distilljax.diffusion.paths import Path
from distilljax.diffusion.times import Law, PairLaw

Array = jax.Array


def fold_name(key: Array, name: str) -> Array:
    """Key for a name: independent of order and of what else is drawn."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def own_name(name: str) -> str:
    """A name without the method before its last "/".

    ``compose`` calls things of one name ``"method/name"``; they keep their keys.
    """
    return name.rpartition("/")[2]


def _identity(x: Array) -> Array:
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What a term, draw or collect function sees.

    Attributes:
      nets: bound roles, ``ctx.nets.student``.
      data: batch fields, collected results and the results of draws, by name.
      step: training cycle (one student update), int32 scalar.
      repeat: index inside the phase's repeats, int32 scalar.
      memory: the method's state by name.
      root: key of the term or draw; use `key`, never this.
      batch_size: samples in this batch (the global one under a mesh).
      sample_shape: shape of one sample.
      constrain: places an array with batch first on the batch sharding.
      owner: name of the term or draw, for errors.
    """

    nets: Nets
    data: Mapping[str, Any]
    step: Array
    repeat: Array
    memory: Mapping[str, Any]
    root: Array
    batch_size: int
    sample_shape: tuple[int, ...]
    constrain: Callable[[Array], Array] = _identity
    owner: str = ""
    used: set[str] = dataclasses.field(default_factory=set, repr=False)

    def of(self, owner: str, data: Mapping[str, Any] | None = None) -> Context:
        """The context of a term or draw: own names, optionally other data.

        Roles in training mode get a dropout key of their own, which every pass of the
        term through them shares: both passes of a jvp, and those at two points of one
        trajectory.
        """
        root = fold_name(self.root, own_name(owner))
        nets = {
            role: net
            if net.key is None
            else net.rng(fold_name(root, f"dropout/{role}"))
            for role, net in self.nets.items()
        }
        return dataclasses.replace(
            self,
            nets=Nets(nets),
            root=root,
            owner=owner,
            used=set(),
            data=self.data if data is None else data,
        )

    def under(
        self,
        roles: Sequence[tuple[str, str]],
        data: Sequence[tuple[str, str]],
        memory: Sequence[tuple[str, str]],
    ) -> Context:
        """The same context with further names for what it holds.

        Args:
          roles: pairs of a further name and the name that is there.
          data: the same of fields; one that is not there yet is left out.
          memory: the same of memory entries.
        """
        fields = {old: self.data[new] for old, new in data if new in self.data}
        return dataclasses.replace(
            self,
            nets=Nets(
                {**dict(self.nets.items()), **{o: self.nets[n] for o, n in roles}}
            ),
            data={**self.data, **fields},
            memory={**self.memory, **{o: self.memory[n] for o, n in memory}},
        )

    @property
    def cond(self) -> Any:
        """The condition of the batch, None if there is none."""
        return self.data.get("cond")

    @property
    def told(self) -> Any:
        """The student's condition: with the scale in ``data["guidance"]``, if any."""
        return told(self.cond, self.data.get("guidance"))

    def key(self, name: str) -> Array:
        """The key of a name.

        Raises:
          ValueError: if the name was drawn before in the same term.
        """
        self._use(name)
        return fold_name(self.root, name)

    def _use(self, name: str) -> None:
        if name in self.used:
            raise ValueError(
                f"{name!r} is drawn twice in {self.owner!r}: two draws of one name "
                "would be equal; give the second another name"
            )
        self.used.add(name)

    def keys(self, names: Sequence[str]) -> Array:
        """The keys of several names ``[N]``, for a scan that draws with each of them.

        Raises:
          ValueError: see `key`.
        """
        for name in names:
            self._use(name)
        folds = jnp.asarray([zlib.crc32(name.encode()) for name in names], jnp.uint32)
        return jax.vmap(jax.random.fold_in, (None, 0))(self.root, folds)

    def normal(self, name: str, like: Array | None = None) -> Array:
        """Standard normal float32 ``[B, *sample_shape]``, or shaped as ``like``."""
        return self.normal_of(self.key(name), like)

    def normal_of(self, key: Array, like: Array | None = None) -> Array:
        """`normal` with one of `keys`."""
        shape = (self.batch_size, *self.sample_shape) if like is None else like.shape
        return self.constrain(jax.random.normal(key, shape))

    def uniform(self, name: str, shape: tuple[int, ...] | None = None) -> Array:
        """Uniform numbers in [0, 1), ``[B]`` or of a shape with batch first."""
        shape = (self.batch_size,) if shape is None else shape
        return self.constrain(jax.random.uniform(self.key(name), shape))

    def integers(self, name: str, count: int | Array) -> Array:
        """Integers ``0 .. count - 1``, ``[B]``."""
        key = self.key(name)
        return self.constrain(jax.random.randint(key, (self.batch_size,), 0, count))

    def choice(self, name: str, count: int) -> Array:
        """One integer ``0 .. count - 1`` for the whole batch, a scalar."""
        return jax.random.randint(self.key(name), (), 0, count)

    def times(self, name: str, law: Law, path: Path | None = None) -> Array:
        """Times ``[B]`` of a law, in the clock of ``path`` (default the student's)."""
        path = self.nets["student"].path if path is None else path
        return self.constrain(law(self.key(name), (self.batch_size,), path))

    def pair(
        self, name: str, law: PairLaw, path: Path | None = None
    ) -> tuple[Array, Array]:
        """Times ``(t, s)``, each ``[B]``, of a two-time law; see `times`."""
        path = self.nets["student"].path if path is None else path
        t, s = law(self.key(name), (self.batch_size,), path)
        return self.constrain(t), self.constrain(s)

    def zeros(self) -> Array:
        """Zeros ``[B]`` on the batch sharding (the time of the data)."""
        return self.constrain(jnp.zeros((self.batch_size,), jnp.float32))
