"""Pictures of a bench: quality against cost, along training, and samples in 2-D."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from distilljax.bench.suites import STEPS
from distilljax.extras import needed

_COLOURS = {
    "consistency": "#1f6fb2",
    "flow map": "#0b7a57",
    "trajectory": "#8a5a00",
    "distribution matching": "#b3345a",
    "adversarial": "#6a4fb3",
    "composed": "#444444",
    "reward": "#c2185b",
}
_MARKS = {1: "o", 2: "s", 4: "^"}
_POINTS, _LIMIT = 1500, 28


def draw(
    folder: epath.Path, results: Mapping[str, Any]
) -> dict[str, tuple[str, bytes]]:
    """Name -> title and PNG of every picture that the results allow."""
    rows = [row for row in results["rows"] if "error" not in row]
    out = {}
    if rows:
        out["pareto"] = ("Quality against cost", _pareto(results, rows))
        out["training"] = ("Quality along training", _training(results, rows))
    if results["suite"] == "mixture" and len(results["settings"]["means"][0]) == 2:
        out["samples"] = ("Samples", _samples(folder, results, rows))
    return out


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def _axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    # Without pyplot, which would choose a screen.
    with needed("the bench's pictures"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _colour(row: Mapping[str, Any]) -> str:
    return _COLOURS.get(row["family"], "#444444")


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both, by rising first coordinate."""
    out: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not out or y < out[-1][1]:
            out.append((x, y))
    return out


def spread(heights: list[float], gap: float) -> list[float]:
    """Heights in [0, 1] moved apart to at least ``gap``, in their order and no further.

    Where there is no room for that, all gaps are equal.
    """
    from sklearn.isotonic import isotonic_regression

    gap = min(gap, 1.0 / max(len(heights) - 1, 1))
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(order))
    # Least squares under the gaps, which are a rising order of what they leave.
    risen = isotonic_regression(np.asarray(heights)[order] - steps)
    out = np.empty(len(order))
    out[order] = np.clip(risen, 0.0, max(1.0 - gap * (len(order) - 1), 0.0)) + steps
    return out.tolist()


def _label(axis: Any, named: list[tuple[str, tuple[float, float], str]]) -> None:
    """Names in a column on the right, each with a line to its point.

    Args:
      axis: with its final limits, logarithmic in the second coordinate.
      named: name, point and colour.
    """
    low, high = np.log(axis.get_ylim())
    heights = [float((np.log(p[1]) - low) / (high - low)) for _, p, _ in named]
    line = {
        "arrowstyle": "-",
        "lw": 0.5,
        "alpha": 0.5,
        "shrinkB": 2,
        "relpos": (0.0, 0.5),
    }
    for (name, point, colour), height in zip(
        named, spread(heights, 0.034), strict=True
    ):
        axis.annotate(
            name,
            point,
            (1.03, height),
            textcoords="axes fraction",
            arrowprops={**line, "color": colour},
            fontsize=7,
            va="center",
            annotation_clip=False,
        )


def _scale(results: Mapping[str, Any], axis: Any, best: float, worst: float) -> None:
    """Limits of the quality that show all methods, and the floor as a line."""
    floor = results["floor"][results["headline"]]["mean"]
    axis.axhline(floor, color="#777777", lw=1, ls=":")
    axis.annotate("floor", (0, floor), xycoords=("axes fraction", "data"), fontsize=7)
    axis.set_yscale("log")
    axis.set_ylim(0.8 * min(best, floor), 1.25 * worst)


def _pareto(results: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> bytes:
    headline = results["headline"]
    figure, axes = _axes(1, 4, (24, 6.5))
    for nfe, axis in zip(STEPS, axes[0], strict=False):
        named = []
        for row in rows:
            found = row["by_nfe"].get(str(nfe))
            if found is None:
                continue
            run = row["runs"][str(nfe) if row["each"] else next(iter(row["runs"]))]
            point = (run["seconds"], found[headline]["mean"])
            named.append((row["name"], point, _colour(row)))
            axis.plot(*point, _MARKS[nfe], color=_colour(row), ms=6)
        start = results["pretrained"][str(nfe)][headline]["mean"]
        axis.set(xscale="log", title=f"{nfe} NFE (the start: {start:.3g})")
        axis.set(xlabel="training, seconds of all seeds", ylabel=headline)
        if not named:
            continue
        best = front([point for _, point, _ in named])
        axis.step(*zip(*best, strict=True), where="post", color="#999999", lw=1)
        _scale(results, axis, best[-1][1], max(p[1] for _, p, _ in named))
        _label(axis, named)
    _by_steps(results, axes[0][3], rows)
    families = {row["family"]: _colour(row) for row in rows}
    for family, colour in families.items():
        axes[0][0].plot([], [], "o", color=colour, label=family)
    figure.legend(fontsize=9, loc="outside lower center", ncols=len(families))
    return _png(figure)


def _by_steps(
    results: Mapping[str, Any], axis: Any, rows: list[Mapping[str, Any]]
) -> None:
    headline = results["headline"]
    named, every = [], []
    for row in rows:
        values = [(int(k), f[headline]["mean"]) for k, f in row["by_nfe"].items()]
        axis.plot(*zip(*values, strict=True), "-o", color=_colour(row), ms=3, lw=1)
        named.append((row["name"], values[-1], _colour(row)))
        every += [value for _, value in values]
    start = [results["pretrained"][str(k)][headline]["mean"] for k in STEPS]
    axis.plot(STEPS, start, "--", color="#777777", lw=1.5)
    axis.set(xscale="log", xlabel="NFE", title="every NFE (dashed: the start)")
    axis.set_xticks(STEPS, [str(k) for k in STEPS])
    axis.minorticks_off()
    _scale(results, axis, min(every), max(every))
    _label(axis, named)


def _training(results: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> bytes:
    figure, axes = _axes(1, 1, (11, 6))
    axis = axes[0][0]
    named = []
    for row in rows:
        run = next(iter(row["runs"].values()))
        x = [share * run["evaluations"] for share, _ in run["history"]]
        y = np.asarray([values for _, values in run["history"]])
        axis.plot(x, y.mean(1), "-o", color=_colour(row), ms=3, lw=1)
        axis.fill_between(x, y.min(1), y.max(1), color=_colour(row), alpha=0.08, lw=0)
        named.append((row["name"], (x[-1], float(y[-1].mean())), _colour(row)))
    axis.set(yscale="log", xlabel="network evaluations of one seed")
    axis.set(ylabel=f"{results['headline']} of a few samples, fewest NFE")
    _label(axis, named)
    return _png(figure)


def _samples(
    folder: epath.Path, results: Mapping[str, Any], rows: list[Mapping[str, Any]]
) -> bytes:
    """Exact samples, the start and every method; density of the truth behind."""
    names = ["floor", "pretrained", *(row["name"] for row in rows)][:_LIMIT]
    figure, axes = _axes(len(names), 3, (7.5, 2.5 * len(names)))
    means = np.asarray(results["settings"]["means"])
    stds = np.asarray(results["settings"]["stds"])
    reach = 4.0 * stds.max()
    low, high = means.min(0) - reach, means.max(0) + reach
    for name, line in zip(names, axes, strict=True):
        for nfe, axis in zip(STEPS, line, strict=True):
            path = folder / "samples" / f"{name}_nfe{nfe}_seed0.npz"
            if name == "floor":
                path = folder / "samples" / "floor_seed0.npz"
            axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
            axis.set(xticks=[], yticks=[])
            if not path.is_file():
                axis.set_axis_off()
                continue
            with path.open("rb") as file, np.load(file) as found:
                x = found["x"][:_POINTS]
            for mean, std in zip(means, stds, strict=True):
                from matplotlib.patches import Circle

                axis.add_patch(
                    Circle(mean, 2.0 * std, fill=False, ec="#d08770", lw=0.8)
                )
            axis.plot(x[:, 0], x[:, 1], ",", color="#1d3f66")
            title = "exact" if name == "floor" else f"{name}, {nfe} NFE"
            axis.set_title(title, fontsize=8)
    return _png(figure)
