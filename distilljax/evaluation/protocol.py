"""What a number was measured with, and the refusal to compare unlike numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from distilljax.evaluation.statistics import Estimate
from distilljax.runtime.errors import unknown


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that decides a number, apart from the samples themselves.

    Attributes:
      statistic: name of the statistic, ``frechet`` for example.
      features: name of the feature extractor.
      features_fingerprint: digest of its weights and settings.
      samples: number of samples.
      reference_samples: number of reference images; None if that is not recorded.
      reference: where the reference came from, for readers. Two names of one
        `reference_fingerprint` are one reference.
      reference_fingerprint: digest of the reference images after rounding.
      rounding: ``uint8`` or ``none``.
      value_range: range of the values in the files, ``[-1, 1]`` for example.
      seed: noise seed of the samples; None if it is not recorded.
      settings: the statistic's own, ``(("k", 3), ...)`` sorted by name; a mapping is
        taken too.
    """

    statistic: str
    features: str
    features_fingerprint: str
    samples: int
    reference_samples: int | None
    reference: str
    reference_fingerprint: str
    rounding: str = "uint8"
    value_range: str = "[-1, 1]"
    seed: int | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        pairs = dict(self.settings)
        object.__setattr__(self, "settings", tuple(sorted(pairs.items())))
        if self.rounding not in ("uint8", "none"):
            raise ValueError(unknown("rounding", self.rounding, ("uint8", "none")))

    def differences(self, other: Protocol) -> list[str]:
        """What differs, ``"samples: 50000 and 1797"``; empty if comparable."""
        out = []
        for field in dataclasses.fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            if field.name == "settings":
                p, q = dict(a), dict(b)
                out += [
                    f"{key}: {p.get(key)} and {q.get(key)}"
                    for key in sorted({*p, *q})
                    if p.get(key) != q.get(key)
                ]
            elif field.name != "reference" and a != b:
                out.append(f"{field.name}: {a} and {b}")
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return dataclasses.asdict(self) | {"settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Protocol:
        """The protocol of `to_dict`.

        Raises:
          ValueError: fields are missing or unknown.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in found:
            if name not in known:
                raise ValueError(unknown("field of a protocol", name, known))
        missing = sorted(known - set(found))
        if missing:
            raise ValueError(f"a protocol must have {', '.join(missing)}")
        return cls(**found)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A number with its protocol.

    Attributes:
      value: the number.
      protocol: how it was measured.
      error: standard error, as the statistic defines it; None where it has none.
      failed: why there is no number, whose value is NaN then; "" where there is one.
    """

    value: float
    protocol: Protocol
    error: float | None = None
    failed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        out = {"error": self.error, "protocol": self.protocol.to_dict()}
        if self.failed:
            return {"value": None, "failed": self.failed, **out}
        return {"value": self.value, **out}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Measurement:
        """The measurement of `to_dict`.

        Raises:
          ValueError: value or protocol are missing, or the protocol is malformed.
        """
        missing = [name for name in ("value", "protocol") if name not in found]
        if missing:
            raise ValueError(f"a measurement must have {' and '.join(missing)}")
        protocol = Protocol.from_dict(found["protocol"])
        why = found.get("failed", "")
        value = math.nan if why else found["value"]
        return cls(value, protocol, found.get("error"), why)


def check_comparable(a: Measurement, b: Measurement, *, force: bool = False) -> None:
    """Refuses two numbers of different protocols.

    Raises:
      ValueError: the protocols differ and `force` is not set; lists the differences.
        Or one of them has no number.
    """
    for one in (a, b):
        if one.failed:
            raise ValueError(
                f"{one.protocol.statistic} of {one.protocol.samples} samples has no "
                f"number to compare: {one.failed}"
            )
    found = a.protocol.differences(b.protocol)
    if found and not force:
        raise ValueError(
            f"these numbers follow different protocols ({'; '.join(found)}): measure "
            "both in one way, or force the comparison (force=True, --force)."
        )


def difference(a: Measurement, b: Measurement, *, force: bool = False) -> Estimate:
    """``a - b`` and its standard error, errors taken as independent.

    An error that is not known counts as 0.

    Raises:
      ValueError: as `check_comparable`.
    """
    check_comparable(a, b, force=force)
    return Estimate(a.value - b.value, math.hypot(a.error or 0.0, b.error or 0.0))


def ratio(a: Measurement, b: Measurement, *, force: bool = False) -> Estimate:
    """``a / b`` and its standard error to first order, errors taken as independent.

    Raises:
      ValueError: as `check_comparable`, and where b is 0.
    """
    check_comparable(a, b, force=force)
    if b.value == 0:
        raise ValueError("a ratio needs a number other than 0 below, got b = 0")
    value = a.value / b.value
    above, below = (a.error or 0.0) / b.value, (b.error or 0.0) * value / b.value
    return Estimate(value, math.hypot(above, below))
