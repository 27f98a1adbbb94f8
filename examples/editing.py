"""Draws the pictures of docs/editing.md, from two runs that it trains if need be.

    python examples/editing.py --out=docs/editing

Hardware: 2 CPU cores. Cost: about 2 minutes for a teacher and a consistency student on
coloured digits (configs/coloured/), 1 minute for the pictures. A second call reuses the
runs in --runs.
"""

from __future__ import annotations

import argparse
import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from distilljax import (
    api,
    cards,
    editing,
    evaluation,
    generation,
    image_edits,
    sampling,
    solvers,
    storage,
)
from distilljax.data import coloured_digits
from distilljax.evaluation.panels import INK, MUTED

ROOT = pathlib.Path(__file__).parent.parent
DPI, SCALE, MARGIN, LABELS, ROW_GAP = 100, 7, 28, 236, 14
STEPS = 8
# Of the digits 0 to 9, the places of ten that are written plainly, in many colours.
SHOWN = (4, 6, 14, 1, 3, 5, 15, 16, 14, 5)


class Row(NamedTuple):
    """A row of a picture: its label, a remark below, and images ``[N, H, W, C]``."""

    label: str
    remark: str
    images: Any


def train(runs: pathlib.Path) -> tuple[api.Fitted, api.Fitted]:
    """The teacher and the student of configs/coloured, trained or continued."""
    teacher = None
    for name in ("teacher", "scm"):
        card = cards.load(ROOT / "configs" / "coloured" / f"{name}.py")
        with card.unlocked():
            card.teacher = "" if teacher is None else str(runs / "teacher")
        fitted = api.fit_card(card, teacher=teacher, folder=runs / name)
        if name == "scm":
            assert teacher is not None
            return teacher, fitted
        teacher = fitted
    raise AssertionError


def picture(
    path: pathlib.Path, title: str, note: str, rows: Sequence[Row], chart: Any = None
) -> None:
    """Writes rows of images with their labels at the left, and a chart at the right.

    Args:
      path: the PNG file.
      title: what the picture shows.
      note: how it was made.
      rows: equally many images each.
      chart: ``axes -> None``, draws in a square beside the rows.
    """
    count = len(rows[0].images)
    tiles = [evaluation.image_grid(_large(r.images), count, SCALE) for r in rows]
    high, wide = tiles[0].shape[:2]
    top = 96
    height = top + len(rows) * (high + ROW_GAP) + MARGIN - ROW_GAP
    side = 0 if chart is None else max(height - top - MARGIN - 40, 300)
    width = LABELS + wide + MARGIN + (side + 120 if chart else 0)
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def text(left: float, down: float, words: str, size: float, **options: Any) -> None:
        style: Any = {"color": INK, "va": "center", **options}
        size = size * 72 / DPI
        figure.text(left / width, 1 - down / height, words, fontsize=size, **style)

    text(MARGIN, 30, title, 22, weight="bold")
    text(MARGIN, 62, note, 15, color=MUTED)
    for i, (row, tile) in enumerate(zip(rows, tiles, strict=True)):
        down = top + i * (high + ROW_GAP)
        figure.figimage(tile, LABELS, height - down - high, origin="upper")
        middle = down + high / 2
        text(MARGIN, middle - 10 * bool(row.remark), row.label, 17, weight="bold")
        text(MARGIN, middle + 12, row.remark, 14, color=MUTED)
    if chart is not None:
        left, base = (LABELS + wide + 100) / width, (MARGIN + 30) / height
        chart(figure.add_axes((left, base, side / width, side / height)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    storage.write_atomic(path, _small(buffer.getvalue()))
    print(path)


def _large(images: Any) -> np.ndarray:
    """Images clipped to [-1, 1]; small ones repeated to 8 pixels, grey ones to 3."""
    x = np.clip(np.asarray(images), -1.0, 1.0)
    x = x.repeat(8 // x.shape[1], axis=1).repeat(8 // x.shape[2], axis=2)
    return x.repeat(3 // x.shape[3], axis=3)


def _small(png: bytes) -> bytes:
    """The same picture in 64 greys and 192 colours, a third of the size."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    coloured = np.ptp(pixels, axis=-1) > 8
    index = np.rint(pixels.mean(axis=-1) * (63.0 / 255.0)).astype(np.uint8)
    found = Image.fromarray(pixels[coloured][None]).quantize(192, kmeans=1)
    index[coloured] = 64 + np.asarray(found)[0]
    image = Image.fromarray(index, mode="P")
    greys = np.rint(np.linspace(0, 255, 64)).astype(int).repeat(3)
    image.putpalette([*greys, *(found.getpalette() or [])[: 3 * 192]])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


class Gallery:
    """The pictures, of ten digits of the training data in other colours."""

    def __init__(self, out: pathlib.Path, teacher: api.Fitted, student: api.Fitted):
        self.out, self.teacher, self.student = out, teacher, student
        source = coloured_digits(1, seed=1)
        labels = source.columns["cond"]
        rows = np.array([np.flatnonzero(labels == c)[i] for c, i in enumerate(SHOWN)])
        self.x0, self.labels = source.columns["x0"][rows], labels[rows]

    def edit(self, task: str, images: Any, **options: Any) -> np.ndarray:
        given = {"labels": self.labels, "steps": STEPS, "progress": False, **options}
        return image_edits.edit(self.student, task, np.asarray(images), **given)

    def original(self, remark: str = "not seen by the sampler") -> Row:
        return Row("original", remark, self.x0)

    def several(self, task: str, images: Any, **options: Any) -> list[Row]:
        return [
            Row(f"result {s}", f"NFE {STEPS}, seed {s}", found)
            for s in (1, 2, 3)
            for found in [self.edit(task, images, seed=s, **options)]
        ]

    def inpaint(self) -> None:
        mask = np.zeros((10, 8, 8), bool)
        mask[0::5, 4:] = True
        mask[1::5, :, 4:] = True
        mask[2::5, 2:6, 2:6] = True
        mask[3::5, :4] = True
        mask[4::5] = np.random.default_rng(3).uniform(size=(2, 8, 8)) < 0.6
        seen = np.where(mask[..., None], -0.25, self.x0)
        picture(
            self.out / "inpaint.png",
            "Inpainting",
            "The known pixels are put into every clean estimate; the hole (grey) is "
            "filled in three ways.",
            [
                Row("observed", "grey: the hole", seen),
                *self.several(
                    "inpaint", np.where(mask[..., None], -1, self.x0), mask=mask
                ),
                self.original(),
            ],
        )

    def colourise(self) -> None:
        grey = editing.grey(jnp.asarray(self.x0))
        picture(
            self.out / "colourise.png",
            "Colourisation",
            "Every result has exactly the luminance of the observation; colours that "
            "share it differ with the noise.",
            [
                Row("observed", "luminance", grey),
                *self.several("colourise", grey),
                self.original(),
            ],
        )

    def super_resolve(self) -> None:
        rows = []
        for factor in (2, 4):
            small = editing.shrink(jnp.asarray(self.x0), factor)
            side = 8 // factor
            rows += [
                Row("observed", f"{side} x {side} means of patches", small),
                Row(
                    f"result, {factor} x",
                    f"NFE {STEPS}",
                    self.edit("super_resolve", small),
                ),
            ]
        picture(
            self.out / "super_resolve.png",
            "Super-resolution",
            "The mean of every patch of a result is the pixel that was observed.",
            [*rows, self.original()],
        )

    def denoise(self) -> None:
        eps = np.random.default_rng(0).standard_normal(self.x0.shape)
        rows = []
        for std in (0.5, 1.0):
            noisy = (self.x0 + std * eps).astype(np.float32)
            found = self.edit("denoise", noisy, noise=std, steps=1)
            rows += [
                Row("observed", f"noise of std {std:g}", noisy),
                Row("result", "NFE 1", found),
            ]
        picture(
            self.out / "denoise.png",
            "Denoising",
            "One evaluation from the noise level of the observation.",
            [*rows, self.original()],
        )

    def stroke(self) -> None:
        """Strokes: blocks of 2 x 2 pixels of one colour."""
        ink = (editing.shrink(jnp.asarray(self.x0), 2) + 1.0) / 2.0
        drawn = np.asarray(ink.max(axis=-1, keepdims=True) > 0.35)
        colour = self.x0.max(axis=(1, 2), keepdims=True)
        rough = np.where(drawn, colour, -1.0).astype(np.float32)
        rough = rough.repeat(2, axis=1).repeat(2, axis=2)
        picture(
            self.out / "stroke.png",
            "From strokes to a picture",
            "A rough drawing under noise up to a share of the noise angle: more is "
            "more realistic and less faithful.",
            [
                Row("observed", "blocks of one colour", rough),
                *[
                    Row(
                        f"strength {s:g}",
                        "NFE 4",
                        self.edit("stroke", rough, strength=s, steps=4),
                    )
                    for s in (0.3, 0.5, 0.7, 0.9)
                ],
                self.original("from which it was drawn"),
            ],
        )

    def inverted(self, x0: Any, labels: Any, solver: Any, steps: int) -> Any:
        """Noise of the teacher's ODE, and what the same solver makes of it."""
        nfe, net, params = (
            solver.evaluations(steps),
            self.teacher.network,
            self.teacher.params,
        )
        key = jax.random.key(0)
        back = generation.teacher_inverter(net, nfe, solver=solver)
        there = generation.teacher_sampler(net, nfe, solver=solver)
        eps = jax.jit(back)(params, x0, labels, key)
        return eps, jax.jit(there)(params, eps, labels, key)

    def invert(self) -> None:
        rows: list[Row] = []
        for solver, steps in ((solvers.Euler(), 9), (solvers.FireFlow(), 8)):
            eps, again = self.inverted(self.x0, self.labels, solver, steps)
            name = type(solver).__name__
            error = float(jnp.sqrt(jnp.mean((again - self.x0) ** 2)))
            remark = f"NFE 9 + 9, RMSE {error:.3f}"
            rows += [
                Row(f"noise, {name}", "NFE 9, divided by 3", eps / 3.0),
                Row(f"back, {name}", remark, again),
            ]
        source = coloured_digits(1, seed=1)
        x0, labels = source.columns["x0"][:500], source.columns["cond"][:500]
        curves = {}
        for solver in (solvers.Euler(), solvers.Midpoint(), solvers.FireFlow()):
            steps = [
                n for n in (4, 6, 8, 12, 16, 24, 32) if solver.evaluations(n) <= 33
            ]
            errors = [
                jnp.sqrt(jnp.mean((self.inverted(x0, labels, solver, n)[1] - x0) ** 2))
                for n in steps
            ]
            spent = [solver.evaluations(n) for n in steps]
            curves[type(solver).__name__] = (spent, [float(e) for e in errors])
            print(type(solver).__name__, curves[type(solver).__name__])

        def chart(axes: Any) -> None:
            colours = ("#8a94a0", "#0f6cbd", "#d1501a")
            for (name, (nfe, error)), colour in zip(
                curves.items(), colours, strict=True
            ):
                axes.loglog(nfe, error, "o-", color=colour, markersize=4, label=name)
            ticks = [4, 8, 16, 32]
            axes.set_xticks(ticks, [str(t) for t in ticks])
            axes.set_xticks([], minor=True)
            axes.set_xlabel("evaluations, each way", color=MUTED)
            axes.set_title(
                "RMSE of the reconstruction", loc="left", fontsize=11, color=INK
            )
            axes.grid(axis="y", color="#dfe3e8", linewidth=0.8)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.tick_params(colors=MUTED, labelsize=9)
            axes.legend(frameon=False, fontsize=10, loc="lower left")

        picture(
            self.out / "invert.png",
            "Inversion",
            "Images to noise along the teacher's ODE and back, with Euler and with "
            "FireFlow at the same cost.",
            [*rows, self.original("")],
            chart,
        )

    def interpolate(self) -> None:
        """Between two images of a digit: their noises, and what lies between."""
        source = coloured_digits(1, seed=1)
        shares = jnp.linspace(0.0, 1.0, 10)
        path = generation.sampling_path(self.student.method, self.student.network)
        rows = []
        for digit in (2, 4, 6, 8, 9):
            ends = source.columns["x0"][source.columns["cond"] == digit][[5, 33]]
            labels = jnp.full(2, digit)
            eps, _ = self.inverted(ends, labels, solvers.FireFlow(), 16)
            first, last = jnp.repeat(path.start(eps), 10, axis=0).reshape(
                2, 10, 8, 8, 3
            )
            student = generation.student_map(
                self.student.method,
                self.student.network,
                self.student.params,
                jnp.full(10, digit),
            )
            hooks = editing.interpolate(last, shares)
            between = sampling.sample(
                student, first, (path.t_max, 0.0), hooks=hooks, path=path
            )
            shown = np.concatenate([ends[:1], between, ends[1:]])
            rows.append(Row(f"digit {digit}", "NFE 1", shown))
        picture(
            self.out / "interpolate.png",
            "Interpolation",
            "First and last column: two images. Between: one evaluation each, from the "
            "slerp of their noises at shares 0 to 1.",
            rows,
        )

    def teacher_first(self) -> None:
        labels = np.arange(10)
        source = coloured_digits(1)
        every, real = (
            source.columns["cond"],
            source.columns["x0"].reshape(len(source), -1),
        )

        def row(name: str, nfe: str, sampler: Any, params: Any) -> Row:
            def draw(labels: Any) -> np.ndarray:
                run = {"sample_shape": (8, 8, 3), "labels": labels, "batch_size": 2048}
                return generation.generate(sampler, params, **run, progress=False)

            x = np.clip(draw(every), -1.0, 1.0).reshape(len(every), -1)
            distance = evaluation.frechet_distance(x, real)
            print(name, nfe, distance)
            return Row(name, f"{nfe}, Frechet {distance:.2f}", draw(labels))

        method, net = self.student.method, self.student.network
        lead = api.lead_of(self.student, self.teacher)
        both = (self.student.params, self.teacher.params)
        picture(
            self.out / "teacher_first.png",
            "The teacher takes the first step",
            "Same noise and labels in every row. One Heun step of the teacher, then "
            "three of the student's four.",
            [
                row(
                    "teacher",
                    "NFE 50",
                    generation.teacher_sampler(self.teacher.network, 50),
                    self.teacher.params,
                ),
                row(
                    "teacher first",
                    "NFE 2 + 3",
                    generation.student_sampler(method, net, 4, lead=lead),
                    both,
                ),
                row(
                    "student",
                    "NFE 4",
                    generation.student_sampler(method, net, 4),
                    self.student.params,
                ),
            ],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("docs/editing")
    )
    parser.add_argument(
        "--runs", type=pathlib.Path, default=pathlib.Path("runs/coloured")
    )
    options = parser.parse_args()
    gallery = Gallery(options.out, *train(options.runs))
    gallery.inpaint()
    gallery.colourise()
    gallery.super_resolve()
    gallery.denoise()
    gallery.stroke()
    gallery.interpolate()
    gallery.invert()
    gallery.teacher_first()


if __name__ == "__main__":
    main()
