"""The report's picture: samples, quality against cost, and training, at a glance.

Lengths are pixels of the finished picture, measured from its top left corner.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilljax.evaluation.panels import (
    DPI,
    MUTED,
    PALETTE,
    TEACHER,
    WIDTH,
    Curves,
    Page,
    Panel,
    draw_losses,
    draw_progress,
    draw_quality,
    panel_height,
)
from distilljax.evaluation.plots import image_grid
from distilljax.evaluation.summary import (
    best_students,
    methods_of,
    number,
    ratio_to_teacher,
)
from distilljax.runtime.extras import needed

_MARGIN, _GUTTER = 64, 48
_BLOCK_GAP, _GROUP_GAP, _LARGEST_GROUP_GAP = 14, 44, 96
_LARGEST_BAND = 830
_PANEL_GAP = 110


class Block(NamedTuple):
    """One column block of samples: the grid's key, its sampler and its NFE."""

    key: str
    sampler: str
    nfe: int | None


def parse_block(key: str) -> Block:
    """``"scm_nfe4"`` is sampler ``scm`` at 4 evaluations; other names stand alone."""
    sampler, found, nfe = key.rpartition("_nfe")
    if found and sampler and nfe.isdigit():
        return Block(key, sampler, int(nfe))
    return Block(key, key, None)


def colours(report: Mapping[str, Any]) -> dict[str, str]:
    """A colour for the teacher and, by its place in the report, for every method."""
    methods = enumerate(methods_of(report))
    return {m: PALETTE[i % len(PALETTE)] for i, m in methods} | {"teacher": TEACHER}


def report_figure(
    report: Mapping[str, Any],
    grids: Mapping[str, ArrayLike],
    curves: Curves,
    columns: int = 2,
) -> bytes:
    """Draws the picture.

    Args:
      report: ``teacher`` with ``nfe`` and ``frechet``; ``students``, rows with
        ``method``, ``nfe`` and ``frechet``; optionally ``title``.
      grids: ``{name: images [R * columns, H, W, C]}`` in [-1, 1], one column block
        each, in this order; every block shows the same noise and labels, one label a
        row. ``"<method>_nfe<k>"`` stands under its method, other names alone.
      curves: ``{method: {"step": [S], "loss": [S]}}``; with ``"frechet"`` (at the same
        steps, or at ``"frechet_step"``) the quality while training is drawn too.
      columns: images of one label that stand side by side.

    Returns:
      The picture as PNG.

    Raises:
      ValueError: grids of unequal size or not divisible by `columns`; a curve whose
        series and steps differ in length.
      ModuleNotFoundError: matplotlib is not installed.
    """
    with needed("the report's picture"):
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    _check_curves(curves)
    pictures, rows, gap = _pictures(grids, columns)
    top = 172
    band = pictures[0][1].shape[0] if pictures else 0
    panels_top = top + (band + 56 + 150 if pictures else 80)
    drawn: list[tuple[Panel, float]] = []
    if report["students"]:
        drawn.append((draw_quality, 1.25))
    if any("frechet" in curve for curve in curves.values()):
        drawn.append((draw_progress, 1.1))
    if curves:
        drawn.append((draw_losses, 1.0))
    panel = panel_height(curves)
    height = panels_top + (panel + 120 if drawn else 0)
    style: Any = {"font.family": "DejaVu Sans", "axes.linewidth": 0.8}
    with matplotlib.rc_context(style):
        figure = Figure((WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        page = Page(figure, height, panel, colours(report))
        title = report.get("title", "Few-step students beside their teacher")
        page.text(_MARGIN, 64, title, 38, weight="bold")
        page.text(_MARGIN, 104, _headline(report), 25, color=MUTED)
        if pictures:
            _draw_samples(page, report, pictures, rows, top, gap)
        room = WIDTH - 2 * _MARGIN - (len(drawn) - 1) * _PANEL_GAP
        unit = min(room / (sum(share for _, share in drawn) or 1), 1000)
        left: float = _MARGIN
        for draw, share in drawn:
            draw(page, report, curves, left, panels_top, unit * share)
            left += unit * share + _PANEL_GAP
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _headline(report: Mapping[str, Any]) -> str:
    goal = number(report["teacher"].get("frechet"))
    parts = []
    if goal is not None:
        parts.append(f"teacher {goal:.3f} at NFE {report['teacher']['nfe']}")
    for nfe, row in best_students(report).items():
        ratio = ratio_to_teacher(report, row)
        times = f" ({ratio:.2f} x teacher)" if ratio is not None else ""
        parts.append(f"NFE {nfe}: {row['method']} {row['frechet']:.3f}{times}")
    return "Best Frechet distance:   " + "   \u00b7   ".join(parts) if parts else ""


def _check_curves(curves: Curves) -> None:
    for method, curve in curves.items():
        for name in [n for n in ("loss", "frechet") if n in curve] or ["loss"]:
            steps = curve.get(f"{name}_step", curve.get("step"))
            if name not in curve or steps is None or len(steps) != len(curve[name]):
                raise ValueError(
                    f"curves[{method!r}] must hold 'step' and 'loss' of one length "
                    "(and 'frechet_step' where 'frechet' has its own steps), got "
                    f"{ ({k: len(v) for k, v in curve.items()}) }; log a step a value."
                )


def _pictures(
    grids: Mapping[str, ArrayLike], columns: int
) -> tuple[list[tuple[Block, NDArray]], int, float]:
    """Every block's picture, the number of rows, and the gap between samplers."""
    images = {key: np.asarray(x) for key, x in grids.items()}
    counts = {key: len(x) for key, x in images.items()}
    if not images:
        return [], 0, 0.0
    count = next(iter(counts.values()))
    if set(counts.values()) != {count} or columns < 1 or count % columns or not count:
        raise ValueError(
            f"grids must hold equally many images, a multiple of columns={columns}, "
            f"got {counts}; sample every block with the same labels."
        )
    blocks = [parse_block(key) for key in images]
    samplers = len({block.sampler for block in blocks})
    between = (len(blocks) - samplers) * _BLOCK_GAP
    room = WIDTH - 2 * _MARGIN - _GUTTER - between - (samplers - 1) * _GROUP_GAP
    tallest = _LARGEST_BAND * columns // count
    tile = max(1, min(tallest, room // (len(blocks) * columns)) - 2)
    side = max(x.shape[2] for x in images.values()) + 2  # with image_grid's border
    scale, shrink = max(1, tile // side), -(-side // tile)
    pictures = [
        (block, image_grid(_shrink(images[block.key], shrink), columns, scale))
        for block in blocks
    ]
    used = sum(picture.shape[1] for _, picture in pictures) + between
    spare = WIDTH - 2 * _MARGIN - _GUTTER - used
    gap = min(_LARGEST_GROUP_GAP, spare / max(samplers - 1, 1))
    return pictures, count // columns, gap


def _shrink(x: NDArray, factor: int) -> NDArray:
    """Means over squares of ``factor`` pixels; what does not fill one is cut off."""
    if factor == 1:
        return x
    n, height, width, channels = x.shape
    height, width = height // factor, width // factor
    x = x[:, : height * factor, : width * factor]
    return x.reshape(n, height, factor, width, factor, channels).mean((2, 4))


def _draw_samples(
    page: Page,
    report: Mapping[str, Any],
    pictures: Sequence[tuple[Block, NDArray]],
    rows: int,
    top: float,
    gap: float,
) -> None:
    known = {(row["method"], row["nfe"]): row for row in report["students"]}
    known["teacher", report["teacher"]["nfe"]] = report["teacher"]
    best = [id(row) for row in best_students(report).values()]
    band = pictures[0][1].shape[0]
    images_top = top + 56
    for row in range(rows):
        middle = images_top + (row + 0.5) * (band + 2) / rows
        page.text(
            _MARGIN + 20, middle, str(row), 22, color=MUTED, va="center", ha="center"
        )
    left: float = _MARGIN + _GUTTER
    for sampler in dict.fromkeys(block.sampler for block, _ in pictures):
        members = [pair for pair in pictures if pair[0].sampler == sampler]
        span = sum(p.shape[1] + _BLOCK_GAP for _, p in members) - _BLOCK_GAP
        shade = page.colour.get(sampler, MUTED)
        size = min(30.0, 1.5 * (span + gap - _BLOCK_GAP) / len(sampler))
        page.text(left, top, sampler, size, color=shade, weight="bold")
        for block, picture in members:
            centre = left + picture.shape[1] / 2
            size = min(24.0, (picture.shape[1] + _BLOCK_GAP) / 4)
            if block.nfe is not None:
                label = f"NFE {block.nfe}"
                page.text(
                    centre, top + 40, label, 0.92 * size, color=MUTED, ha="center"
                )
            page.figure.figimage(
                picture,
                round(left),
                round(page.height - images_top - band),
                origin="upper",
            )
            row = known.get((sampler, block.nfe), {})
            value = number(row.get("frechet"))
            if value is not None:
                page.text(
                    centre,
                    images_top + band + 34,
                    f"{value:.3f}",
                    size,
                    color=shade,
                    ha="center",
                    weight="bold" if id(row) in best else "normal",
                )
            left += picture.shape[1] + _BLOCK_GAP
        left += gap - _BLOCK_GAP
    note = (
        "Same noise and labels in every block, one label a row. Below each block: "
        "Frechet distance to the data, lower is better, the best of each NFE bold. "
        "NFE: network evaluations a sample."
    )
    page.text(_MARGIN + _GUTTER, images_top + band + 74, note, 21, color=MUTED)
