"""What a run ran on: hardware and versions, for reports."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "distilljax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "pillow",
)


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return round(size / 2**30, 1)


def hardware() -> dict[str, Any]:
    """The machine that this process runs on.

    Returns:
      ``platform``, ``cpu_model``, ``cpu_count`` (cores this process may use),
      ``memory_gib``, ``jax_backend`` and ``jax_devices`` (``{kind: count}``).
      Asking for devices starts jax's backend.
    """
    import jax

    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    kinds = [device.device_kind for device in jax.devices()]
    return {
        "platform": platform.platform(),
        "cpu_model": _cpu_model(),
        "cpu_count": cores,
        "memory_gib": _memory_gib(),
        "jax_backend": jax.default_backend(),
        "jax_devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers.

    Returns:
      ``{name: version}``; packages that are not installed are left out.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
