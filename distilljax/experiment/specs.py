"""Values of configs written as text: ``"LogNormal(-1.0, 1.4)"``.

Configs hold plain values, so that they print, compare and travel as JSON. Laws, grids,
schedules, paths, solvers, metrics and transforms are written as the Python call that
makes them and read here against a fixed list of names; nothing else can be called.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from typing import Any

from distilljax import data, losses
from distilljax.core import draws
from distilljax.diffusion import clocks, paths, solvers, times
from distilljax.diffusion import sampler as sampling
from distilljax.losses import metrics, transforms
from distilljax.methods import curricula, fits, weights
from distilljax.runtime.errors import check_finite, unknown

_CALLS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(times, name)
        for name in (
            "AngleGrid",
            "ArctanNormal",
            "Choice",
            "EvenGrid",
            "InClock",
            "Interval",
            "KarrasGrid",
            "KarrasPoints",
            "LogNormal",
            "LogitNormal",
            "Minimum",
            "Mixture",
            "Pair",
            "PathGrid",
            "Point",
            "Product",
            "Ramp",
            "Shifted",
            "ShiftedGrid",
            "Switch",
            "TableGrid",
            "Uniform",
            "central",
        )
    },
    **{
        n: getattr(clocks, n)
        for n in ("ByPath", "KarrasSteps", "KarrasUniform", "Timesteps")
    },
    **{
        n: getattr(sampling, n)
        for n in ("Consistency", "Deterministic", "Gamma", "HopFirst", "SDE")
    },
    **{
        name: getattr(paths, name)
        for name in (
            "bridge_linear",
            "bridge_residual",
            "edm",
            "linear",
            "trigflow",
            "vp",
            "vp_cosine",
            "vp_scaled_linear",
        )
    },
    **{
        name: getattr(solvers, name)
        for name in ("DDIM", "DPMSolverPP2M", "Euler", "FireFlow", "Heun", "Midpoint")
    },
    **{
        name: getattr(curricula, name)
        for name in ("DoublingSegments", "RootSegments", "SegmentDecay", "Shrink")
    },
    **{
        name: getattr(draws, name)
        for name in (
            *("Among", "Denoised", "Jump", "Rollout", "StoredPairs"),
            *("StoredTrajectory", "TeacherTrajectory"),
        )
    },
    "Augmentation": data.Augmentation,
    "Fit": fits.Fit,
    "MinSNR": fits.MinSNR,
    "skew": losses.skew,
    "PseudoHuberElement": metrics.PseudoHuberElement,
    "PseudoHuberVector": metrics.PseudoHuberVector,
    "finite_difference": losses.finite_difference,
}

# Functions of a correction: a call fixes their other arguments.
_PARTIAL: dict[str, Callable[..., Any]] = {
    "clip": transforms.clip,
    "normalize_tangent": transforms.normalize_tangent,
}

_VALUES: dict[str, Any] = {
    "absolute": metrics.absolute,
    "constant": weights.constant,
    "exact": losses.exact,
    "half_mse": metrics.half_mse,
    "inverse_gap": weights.inverse_gap,
    "inverse_output_scale": weights.inverse_output_scale,
    "l2_norm": transforms.l2_norm,
    "largest": metrics.largest,
    "mse_cosine": metrics.mse_cosine,
    "norm": metrics.norm,
    "rms_norm": transforms.rms_norm,
    "snr": weights.snr,
    "snr_plus_one": weights.snr_plus_one,
    "sum_squares": metrics.sum_squares,
    "truncated_snr": weights.truncated_snr,
    **_PARTIAL,
}

NAMES = tuple(sorted({*_CALLS, *_VALUES}))


def parse(text: str) -> Any:
    """Reads a value.

    Args:
      text: a Python literal, a name of `NAMES`, or a call of one with such arguments.

    Returns:
      The value.

    Raises:
      ValueError: if it is anything else; names what exists.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read {text!r}: {error.msg}") from error
    try:
        return _read(tree, text)
    except TypeError as error:
        # Of a call, the sign of a text, the key of a mapping.
        raise ValueError(f"in {text!r}: {error}") from error


def _read(node: ast.AST, text: str) -> Any:
    if isinstance(node, ast.Constant):
        check_finite(f"a number in {text!r}", node.value)
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_read(item, text) for item in node.elts)
    if isinstance(node, ast.Dict):
        keys = [_read(key, text) for key in node.keys if key is not None]
        return dict(zip(keys, (_read(v, text) for v in node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_read(node.operand, text)
    if isinstance(node, ast.Name):
        if node.id not in _VALUES:
            raise ValueError(f"in {text!r}: " + unknown("name", node.id, NAMES))
        return _VALUES[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        args = [_read(arg, text) for arg in node.args]
        kwargs = {k.arg: _read(k.value, text) for k in node.keywords if k.arg}
        if name in _PARTIAL:
            return functools.partial(_PARTIAL[name], *args, **kwargs)
        if name not in _CALLS:
            raise ValueError(f"in {text!r}: " + unknown("name", name, NAMES))
        return _CALLS[name](*args, **kwargs)
    raise ValueError(
        f"cannot read {text!r}: only literals and calls of known names: {NAMES}"
    )


def resolve(value: Any) -> Any:
    """A config value: text that is a known name or call is read, the rest is kept.

    Lists become tuples and mappings are resolved recursively.
    """
    if isinstance(value, str):
        head = value.strip().split("(", 1)[0]
        return parse(value) if "(" in value or head in NAMES else value
    if isinstance(value, Mapping):
        return {name: resolve(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(resolve(item) for item in value)
    return value
