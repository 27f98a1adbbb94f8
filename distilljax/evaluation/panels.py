"""The line charts of the report's picture, and the page that they stand on.

Lengths are pixels of the finished picture, measured from its top left corner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation.plots import image_grid
from distilljax.evaluation.summary import methods_of, number

Curves = Mapping[str, Mapping[str, Any]]

DPI, WIDTH = 160, 2560
INK, MUTED, TEACHER = "#1d232b", "#636d79", "#3c4450"
FAINT = "#dfe3e8"
MARKERS = "osD^vPX*"
# A colour a method by its place; the first eight are as far apart as they can be.
PALETTE = (
    *("#0f6cbd", "#d1501a", "#0b8a63", "#8e4ec6", "#a67c00", "#c2185b", "#00838f"),
    *("#6d4c41", "#4f9be0", "#ef8a5a", "#4fb286", "#b48ae0", "#c7a436", "#e0709a"),
    *("#3fb0bd", "#a1887f", "#1a3a6b", "#7f2a0a", "#064d37", "#55257f", "#5e4700"),
    *("#7a0f3a", "#004a52", "#3b2a24", "#5b6cc9", "#7d8f00", "#e04848", "#708090"),
)


def smooth(values: ArrayLike, window: int) -> NDArray[np.float64]:
    """Centred moving average ``[N]`` that skips NaN and shortens at the ends."""
    x = np.asarray(values, np.float64)
    known = np.isfinite(x)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, x, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    low = np.maximum(np.arange(len(x)) - window // 2, 0)
    high = np.minimum(np.arange(len(x)) + window // 2 + 1, len(x))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total[high] - total[low]) / (count[high] - count[low])


def spread(positions: ArrayLike, gap: float) -> NDArray[np.float64]:
    """Moves labels apart, as little as possible and keeping their order.

    Args:
      positions: ``[N]`` wished positions.
      gap: least distance between two labels.

    Returns:
      ``[N]`` positions at least `gap` apart, nearest to the wishes in least squares
      (isotonic regression by pooling adjacent violators).
    """
    wished = np.asarray(positions, np.float64)
    order = np.argsort(wished, kind="stable")
    pools: list[tuple[float, int]] = []  # mean, size
    for place, value in enumerate(wished[order]):
        mean, size = float(value) - place * gap, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean = (before * many + mean * size) / (many + size)
            size += many
        pools.append((mean, size))
    out = np.empty(len(wished))
    level = [mean for mean, size in pools for _ in range(size)]
    out[order] = np.asarray(level) + gap * np.arange(len(wished))
    return out


def bare(axes: Any, size: float) -> Any:
    """The axes with faint lines, one spine and tick labels of ``size`` points."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=size, length=0, pad=6)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def first_of_each(
    labels: ArrayLike, count: int, most: int = 10
) -> NDArray[np.int64] | None:
    """Places of the first ``count`` images of each class, class after class.

    Args:
      labels: ``[N]``.
      count: images of a class.
      most: classes at most, the lowest labels.

    Returns:
      ``[classes * count]``; None where a class has fewer.
    """
    labels = np.asarray(labels)
    places = [np.flatnonzero(labels == c)[:count] for c in np.unique(labels)[:most]]
    if not places or min(map(len, places)) < count:
        return None
    return np.concatenate(places)


def draw_classes(
    axes: Any,
    images: ArrayLike,
    names: Sequence[Any],
    *,
    scale: int = 4,
    size: float = 11,
) -> None:
    """Images on axes, a class a row beside its name.

    Args:
      axes: of matplotlib.
      images: ``[R * columns, H, W, C]`` in [-1, 1], the classes one after another; see
        `first_of_each`.
      names: of the ``R`` classes.
      scale: see `image_grid`.
      size: of the names, in points.
    """
    grid = image_grid(images, len(np.asarray(images)) // len(names), scale)
    axes.imshow(grid, interpolation="nearest")
    step = grid.shape[0] / len(names)
    axes.set_yticks(step * (np.arange(len(names)) + 0.5), names)
    axes.set_xticks([])
    axes.tick_params(colors=MUTED, labelsize=size, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


@dataclasses.dataclass(frozen=True)
class Page:
    """The figure, addressed in pixels; `panel` is the height of its charts."""

    figure: Any
    height: float
    panel: float
    colour: Mapping[str, str]

    def text(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        style = {"color": INK, "va": "baseline", **style}
        size = size * 72 / DPI
        self.figure.text(x / WIDTH, 1 - y / self.height, text, fontsize=size, **style)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        axes = self.figure.add_axes(
            (
                left / WIDTH,
                1 - (top + height) / self.height,
                width / WIDTH,
                height / self.height,
            )
        )
        return bare(axes, 21 * 72 / DPI)

    def heading(self, left: float, top: float, title: str, note: str) -> None:
        self.text(left, top, title, 28, weight="bold")
        self.text(left, top + 34, note, 22, color=MUTED)


# (page, report, curves, left, top, width)
Panel = Callable[[Page, Mapping[str, Any], Curves, float, float, float], None]


def _columns(curves: Curves) -> int:
    return 1 if len(curves) <= 3 else 2


def panel_height(curves: Curves) -> float:
    """Height of the charts, so that every loss has room."""
    return max(560.0, 150.0 * -(-len(curves) // _columns(curves)))


def plain_log(axis: Any, low: float, high: float) -> None:
    """Few round ticks, written without powers, on a log axis."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

    mantissas = (1, 1.5, 2, 3, 5, 7) if high / low < 8 else (1, 2, 5)
    if high / low > 80:
        mantissas = (1, 3) if high / low < 2000 else (1,)
    ticks = [m * 10.0**e for e in range(-9, 10) for m in mantissas]
    if high / low < 3:
        ticks = list(MaxNLocator(6).tick_values(low, high))
    ticks = [t for t in ticks if low <= t <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _label(
    axes: Any, ends: Sequence[tuple[float, float, str, str]], x: float, side: str
) -> None:
    """Labels ``(x, y, text, colour)`` of line ends, in a column at `x`."""
    to_pixels = axes.transData
    heights = [to_pixels.transform((end[0], end[1]))[1] for end in ends]
    for (at, y, text, colour), height in zip(ends, spread(heights, 30), strict=True):
        label_y = to_pixels.inverted().transform((0, height))[1]
        axes.plot([x, at], [label_y, y], color=colour, linewidth=0.8, alpha=0.5)
        axes.annotate(
            text,
            (x, label_y),
            xytext=(-4 if side == "left" else 4, 0),
            textcoords="offset points",
            ha="right" if side == "left" else "left",
            va="center_baseline",
            color=colour,
            fontsize=22 * 72 / DPI,
            weight="bold",
            annotation_clip=False,
        )


def draw_quality(
    page: Page,
    report: Mapping[str, Any],
    curves: Curves,
    left: float,
    top: float,
    width: float,
) -> None:
    page.heading(left, top, "Quality against cost", "Frechet distance by NFE")
    axes = page.axes(left + 60, top + 70, width - 60, page.panel - 70)
    teacher = report["teacher"]
    lines = {}
    for method in methods_of(report):
        rows = [r for r in report["students"] if r["method"] == method]
        known = [
            (row["nfe"], number(row["frechet"]), number(row.get("frechet_std")) or 0.0)
            for row in sorted(rows, key=lambda r: r["nfe"])
            if number(row["frechet"]) is not None
        ]
        if known:
            lines[method] = tuple(zip(*known, strict=True))
    goal = number(teacher.get("frechet"))
    values = [v for _, frechet, _ in lines.values() for v in frechet]
    values += [goal] if goal is not None else []
    costs = {n for nfe, _, _ in lines.values() for n in nfe} | {teacher["nfe"]}
    axes.set_xscale("log")
    room = 40 + 14 * max((len(f"{m} {0:.3f}") for m in lines), default=0)
    span = max(max(costs) / min(costs), 4) ** (1 / (1 - (room + 40) / (width - 60)))
    share = span ** (1 / (width - 60))  # of the axis a pixel
    axes.set_xlim(min(costs) / share**room, max(costs) * share**40)
    axes.set_xticks(sorted(costs), [str(n) for n in sorted(costs)])
    axes.xaxis.set_tick_params(which="minor", length=0, labelsize=0)
    axes.xaxis.minorticks_off()
    if values and min(values) > 0:
        axes.set_yscale("log")
        low, high = min(values) / 1.12, max(values) * 1.08
        axes.set_ylim(low, high)
        plain_log(axes.yaxis, low, high)
    if goal is not None:
        axes.plot(
            [min(costs), max(costs)], [goal] * 2, color=TEACHER, linewidth=1.4, ls="--"
        )
        axes.plot([teacher["nfe"]], [goal], "o", color=TEACHER, markersize=8)
        axes.annotate(
            f"teacher {goal:.3f}",
            (teacher["nfe"], goal),
            xytext=(6, 10),
            textcoords="offset points",
            ha="right",
            color=TEACHER,
            fontsize=22 * 72 / DPI,
            weight="bold",
        )
    ends = []
    for place, (method, (nfe, frechet, std)) in enumerate(lines.items()):
        shade = page.colour[method]
        axes.errorbar(
            nfe,
            frechet,
            std,
            color=shade,
            linewidth=2,
            elinewidth=1,
            marker=MARKERS[place % len(MARKERS)],
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.8,
        )
        ends.append((nfe[0], frechet[0], f"{method} {frechet[0]:.3f}", shade))
    _label(axes, ends, min(costs) / share**28, "left")


def draw_progress(
    page: Page,
    report: Mapping[str, Any],
    curves: Curves,
    left: float,
    top: float,
    width: float,
) -> None:
    note = "Frechet distance of a fixed seed by share of the training"
    page.heading(left, top, "Quality while training", note)
    room = 30 + 14 * max(len(method) for method in curves)
    axes = page.axes(left + 60, top + 70, width - 60 - room, page.panel - 70)
    axes.set_yscale("log")
    axes.set_xlim(0, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ends, values = [], []
    for method, curve in curves.items():
        if "frechet" not in curve:
            continue
        steps = np.asarray(curve.get("frechet_step", curve.get("step")), float)
        last = max([1.0, *steps, *np.asarray(curve.get("step", ()), float)])
        frechet = np.asarray(curve["frechet"], float)
        known = np.isfinite(frechet) & (frechet > 0)
        if not known.any():
            continue
        share, frechet = steps[known] / last, frechet[known]
        shade = page.colour.get(method, MUTED)
        axes.plot(share, frechet, color=shade, linewidth=2)
        axes.plot(share[-1:], frechet[-1:], "o", color=shade, markersize=5)
        ends.append((share[-1], frechet[-1], method, shade))
        values += list(frechet)
    if values:
        low, high = min(values) / 1.15, max(values) * 1.15
        axes.set_ylim(low, high)
        plain_log(axes.yaxis, low, high)
        _label(axes, ends, 1.05, "right")


def draw_losses(
    page: Page,
    report: Mapping[str, Any],
    curves: Curves,
    left: float,
    top: float,
    width: float,
) -> None:
    note = "smoothed, by training step; each on its own scale"
    page.heading(left, top, "Training loss", note)
    shown = {m: c for m, c in curves.items() if "loss" in c and len(c["loss"])}
    wide = _columns(shown)
    high = -(-len(shown) // wide)
    cell, tall = (width - (wide - 1) * 70) / wide, (page.panel - 14) / max(high, 1)
    for place, (method, curve) in enumerate(shown.items()):
        shade = page.colour.get(method, MUTED)
        x = left + place % wide * (cell + 70)
        y = top + 60 + place // wide * tall
        axes = page.axes(x + 60, y + 44, cell - 60, tall - 90)
        steps = np.asarray(curve.get("loss_step", curve.get("step")), float)
        loss = np.asarray(curve["loss"], float)
        line = smooth(loss, max(1, len(loss) // 25))
        axes.plot(steps, loss, color=shade, linewidth=0.6, alpha=0.28)
        axes.plot(steps, line, color=shade, linewidth=2)
        if np.isfinite(line).any():
            ends = np.nanpercentile(line, [0, 99])
            margin = 0.25 * float(ends[1] - ends[0]) or 0.1 * abs(ends[1]) or 1.0
            axes.set_ylim(ends[0] - margin, ends[1] + margin)
        axes.set_xlim(0, max(float(steps[-1]), 1.0))
        axes.locator_params(axis="y", nbins=3 if tall > 170 else 2)
        axes.set_xticks([0, steps[-1]], ["0", f"{steps[-1]:,.0f}"])
        axes.get_xticklabels()[-1].set_ha("right")
        page.text(x + 60, y + 32, method, 22, color=shade, weight="bold")
