"""Pictures of a bench: quality against cost, along training, and samples in 2-D."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from distilljax.bench.suites import STEPS
from distilljax.evaluation.panels import (
    FAINT,
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    TEACHER,
    bare,
    draw_classes,
    first_of_each,
    plain_log,
)
from distilljax.runtime import storage
from distilljax.runtime.extras import needed

_POINTS, _LIMIT = 1500, 28
# Points of type, and inches of a panel of samples.
_TITLE, _TEXT, _NAME, _PANEL = 15, 12, 11, 2.1
_TILES = 4


def draw(
    folder: epath.Path, results: Mapping[str, Any]
) -> dict[str, tuple[str, bytes]]:
    """Name -> title and PNG of every picture that the results allow."""
    rows = [row for row in results["rows"] if "error" not in row]
    out = {}
    if rows:
        out["pareto"] = ("Quality against cost", _pareto(results, rows))
        out["training"] = ("Quality along training", _training(results, rows))
    planar = results["suite"] == "mixture" and len(results["settings"]["means"][0]) == 2
    if planar:
        out["samples"] = ("Samples", _samples(folder, results, rows))
    pictures = None if planar else _grids(folder, results, rows)
    if pictures is not None:
        out["samples"] = ("Samples", pictures)
    return out


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", pad_inches=0.3)
    return buffer.getvalue()


def _axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    # Without pyplot, which would choose a screen.
    with needed("the bench's pictures"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _charts(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Charts in the look of the report, with room for names at the right."""
    figure, axes = _axes(rows, columns, size)
    figure.get_layout_engine().set(wspace=0.04, hspace=0.06)
    for axis in axes.flat:
        bare(axis, _TEXT)
    return figure, axes


def _titled(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=_TITLE, weight="bold", color=INK, loc="left", pad=12)
    axis.set_xlabel(x, fontsize=_TEXT, color=MUTED)
    axis.set_ylabel(y, fontsize=_TEXT, color=MUTED)


def styles(results: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Colour and mark of every method, by its place in the run."""
    return {
        row["name"]: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)])
        for i, row in enumerate(results["rows"])
    }


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
        "lw": 0.6,
        "alpha": 0.6,
        "shrinkB": 2,
        "relpos": (0.0, 0.5),
    }
    for (name, point, colour), height in zip(
        named, spread(heights, 0.036), strict=True
    ):
        axis.annotate(
            name,
            point,
            (1.03, height),
            textcoords="axes fraction",
            arrowprops={**line, "color": colour},
            fontsize=_NAME,
            color=colour,
            va="center",
            annotation_clip=False,
        )


def _scale(results: Mapping[str, Any], axis: Any, best: float, worst: float) -> None:
    """Limits of the quality that show all methods, and the floor as a line."""
    floor = results["floor"][results["headline"]]["mean"]
    axis.axhline(floor, color=TEACHER, lw=1.2, ls="--")
    axis.annotate(
        f"{results['floor_name']} {floor:.3g}",
        (0.01, floor),
        (0, 5),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=_NAME,
        color=TEACHER,
    )
    low, high = 0.8 * min(best, floor), 1.25 * worst
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    plain_log(axis.yaxis, low, high)


def _named(headline: str) -> str:
    return headline.replace("_", " ")


def _pareto(results: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> bytes:
    headline = results["headline"]
    style = styles(results)
    figure, axes = _charts(2, 2, (19, 15))
    for nfe, axis in zip(STEPS, axes.flat, strict=False):
        named = []
        for row in rows:
            found = row["by_nfe"].get(str(nfe))
            if found is None:
                continue
            run = row["runs"][str(nfe) if row["each"] else next(iter(row["runs"]))]
            point = (run["seconds"], found[headline]["mean"])
            colour, mark = style[row["name"]]
            named.append((row["name"], point, colour))
            axis.plot(*point, mark, color=colour, ms=8, mec="white", mew=0.8)
        start = results["pretrained"][str(nfe)][headline]["mean"]
        count = "1 evaluation" if nfe == 1 else f"{nfe} evaluations"
        title = f"{count} a sample (before training: {start:.3g})"
        _titled(axis, title, "seconds of training, all seeds", _named(headline))
        axis.set_xscale("log")
        if not named:
            continue
        best = front([point for _, point, _ in named])
        axis.step(*zip(*best, strict=True), where="post", color=MUTED, lw=1, zorder=0)
        _scale(results, axis, best[-1][1], max(p[1] for _, p, _ in named))
        plain_log(axis.xaxis, *axis.get_xlim())
        _label(axis, named)
    _by_steps(results, axes.flat[3], rows)
    return _png(figure)


def _by_steps(
    results: Mapping[str, Any], axis: Any, rows: list[Mapping[str, Any]]
) -> None:
    headline = results["headline"]
    style = styles(results)
    named, every = [], []
    for row in rows:
        values = [(int(k), f[headline]["mean"]) for k, f in row["by_nfe"].items()]
        colour, mark = style[row["name"]]
        line = {"marker": mark, "mec": "white", "mew": 0.6, "ms": 7, "lw": 1.6}
        axis.plot(*zip(*values, strict=True), color=colour, **line)
        named.append((row["name"], values[-1], colour))
        every += [value for _, value in values]
    start = [results["pretrained"][str(k)][headline]["mean"] for k in STEPS]
    axis.plot(STEPS, start, ":", color=MUTED, lw=2)
    title = "Every number of evaluations (dotted: before training)"
    _titled(axis, title, "evaluations a sample", _named(headline))
    axis.set_xscale("log")
    axis.set_xticks(STEPS, [str(k) for k in STEPS])
    axis.minorticks_off()
    _scale(results, axis, min(every), max(every))
    _label(axis, named)


def _training(results: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> bytes:
    figure, axes = _charts(1, 1, (15, 8.5))
    axis, style = axes[0][0], styles(results)
    named, every = [], []
    for row in rows:
        run = next(iter(row["runs"].values()))
        x = [share * run["evaluations"] / 1e6 for share, _ in run["history"]]
        y = np.asarray([values for _, values in run["history"]])
        colour, mark = style[row["name"]]
        line = {"marker": mark, "mec": "white", "mew": 0.6, "ms": 6, "lw": 1.6}
        axis.plot(x, y.mean(1), color=colour, **line)
        axis.fill_between(x, y.min(1), y.max(1), color=colour, alpha=0.08, lw=0)
        named.append((row["name"], (x[-1], float(y[-1].mean())), colour))
        every += [float(y.min()), float(y.max())]
    _titled(
        axis,
        f"{_named(results['headline']).capitalize()} of a few samples along training",
        "network evaluations of one seed, millions",
        f"{_named(results['headline'])} at the fewest evaluations a sample",
    )
    low, high = 0.8 * min(every), 1.25 * max(every)
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    plain_log(axis.yaxis, low, high)
    _label(axis, named)
    return _png(figure)


def _saved(folder: epath.Path, name: str) -> dict[str, np.ndarray] | None:
    """The samples of the first seed, where they are there."""
    path = folder / "samples" / f"{name}_seed0.npz"
    return storage.load_arrays(path) if path.is_file() else None


def _panels(
    folder: epath.Path,
    results: Mapping[str, Any],
    rows: list[Mapping[str, Any]],
    truth: str,
    tall: float,
    draw: Callable[[Any, np.ndarray, str], None],
) -> tuple[Any, np.ndarray]:
    """The truth once, then the start and every method of the run; two blocks a line.

    Args:
      folder: of the bench.
      results: of the bench.
      rows: methods that have finished.
      truth: name of the exact samples.
      tall: inches of a line.
      draw: draws samples of one colour on an axis.

    Returns:
      The figure, and its axes, a row a block.
    """
    names = ["pretrained", *(row["name"] for row in rows)][:_LIMIT]
    style = styles(results)
    blocks = [(truth, TEACHER, [("floor", "")])]
    for name in names:
        files = [(f"{name}_nfe{k}", f"NFE {k}") for k in STEPS]
        blocks.append((name, style.get(name, (MUTED, ""))[0], files))
    lines, wide = -(-len(blocks) // 2), 2 * len(STEPS)
    figure, axes = _axes(lines, wide, (_PANEL * wide, tall * lines))
    places = axes.reshape(-1, len(STEPS))
    for place in places.flat:
        place.set_axis_off()
    for (name, colour, files), line in zip(blocks, places, strict=False):
        for (file, nfe), axis in zip(files, line, strict=False):
            found = _saved(folder, file)
            if found is None:
                continue
            axis.set_axis_on()
            draw(axis, found["x"], colour)
            if nfe:
                axis.set_xlabel(nfe, fontsize=_NAME, color=MUTED)
        line[0].set_title(name, fontsize=_TEXT, weight="bold", color=colour, loc="left")
    return figure, places


def _samples(
    folder: epath.Path, results: Mapping[str, Any], rows: list[Mapping[str, Any]]
) -> bytes:
    """The truth once, then the start and every method; two blocks a line."""
    from matplotlib.patches import Circle

    means = np.asarray(results["settings"]["means"])
    stds = np.asarray(results["settings"]["stds"])
    reach = 4.0 * stds.max()
    low, high = means.min(0) - reach, means.max(0) + reach

    def points(axis: Any, x: np.ndarray, colour: str) -> None:
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_color(FAINT)
        for mean, std in zip(means, stds, strict=True):
            axis.add_patch(Circle(mean, 2.0 * std, fill=False, ec=MUTED, lw=0.8))
        x = x[:_POINTS]
        axis.plot(x[:, 0], x[:, 1], "o", color=colour, ms=1.6, mec="none")

    figure, places = _panels(folder, results, rows, "exact", _PANEL + 0.4, points)
    places[0][1].text(
        *(0.0, 0.5, "circles: two standard\ndeviations of each mode\nof the truth"),
        **{"fontsize": _NAME, "color": MUTED, "va": "center"},
        transform=places[0][1].transAxes,
    )
    return _png(figure)


def _grids(
    folder: epath.Path, results: Mapping[str, Any], rows: list[Mapping[str, Any]]
) -> bytes | None:
    """Images of every class, one class a row; None where samples are no images."""
    first = _saved(folder, "floor")
    if first is None or first["x"].ndim != 4 or "label" not in first:
        return None
    chosen = first_of_each(first["label"], _TILES)
    if chosen is None:
        return None
    classes = first["label"][chosen[::_TILES]]

    def tiles(axis: Any, x: np.ndarray, colour: str) -> None:
        draw_classes(axis, x[chosen], classes, size=_NAME)

    tall = _PANEL * len(classes) / _TILES + 0.6
    return _png(_panels(folder, results, rows, results["floor_name"], tall, tiles)[0])
