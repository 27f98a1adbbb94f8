"""Super-resolution of digits in one step: numbers and a picture.

    distilljax train --config=configs/digits/restoration_teacher.py \
        --out=runs/digits/restoration
    distilljax train --config=configs/digits/tsd_sr.py \
        --teacher=runs/digits/restoration --out=runs/digits/tsd_sr
    python examples/restoration.py
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import jax
import numpy as np
from distilljax.judge import TEACHER_NFE, RestorationJudge
from distilljax.solvers import Euler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distilljax import api, generation
from distilljax.data import degraded_digits

SHOWN = 12
PICTURED = (
    "bicubic",
    f"teacher, {TEACHER_NFE} evaluations",
    "student, 1 evaluation",
    "sharp",
)


def restorations(
    judge: RestorationJudge, teacher: api.Fitted, student: api.Fitted
) -> dict[str, list[np.ndarray]]:
    """Name -> restorations of the held-out digits, for every noise seed."""
    sharp = judge.data["x0"]
    bicubic = jax.image.resize(judge.data["cond"], sharp.shape, "cubic")
    slow = generation.teacher_sampler(teacher.network, TEACHER_NFE)
    euler = generation.teacher_sampler(teacher.network, 1, solver=Euler())
    fast = generation.student_sampler(student.method, student.network, 1)
    return {
        "nearest": [judge.data["degraded"]],
        "bicubic": [np.clip(np.asarray(bicubic), -1.0, 1.0)],
        f"teacher, {TEACHER_NFE} evaluations": judge.draw(teacher, slow),
        "teacher, 1 evaluation": judge.draw(teacher, euler),
        "student before training": judge.draw(
            dataclasses.replace(student, params=teacher.params), fast
        ),
        "student, 1 evaluation": judge.draw(student, fast),
        "sharp": [sharp],
    }


def picture(path: pathlib.Path, rows: dict[str, np.ndarray]) -> None:
    """One row of digits for each name."""
    figure = Figure(figsize=(0.72 * SHOWN + 2.0, 0.74 * len(rows)), dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), SHOWN)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image[..., 0], cmap="gray", vmin=-1.0, vmax=1.0)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(0.19, 0.02, 0.99, 0.98, 0.06, 0.06)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    runs = pathlib.Path("runs/digits")
    parser.add_argument("--teacher", type=pathlib.Path, default=runs / "restoration")
    parser.add_argument("--student", type=pathlib.Path, default=runs / "tsd_sr")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("docs/restoration.png")
    )
    given = parser.parse_args()
    judge = RestorationJudge.of(degraded_digits("train"), degraded_digits("test"))
    found = restorations(judge, api.load(given.teacher), api.load(given.student))
    print(f"{'':<34}{'PSNR':>8}{'Frechet':>10}{'accuracy':>10}")
    for name, images in found.items():
        values = judge.statistics(images)
        print(
            f"{name:<34}{values['psnr']:>8.2f}{values['frechet']:>10.3f}"
            f"{values['accuracy']:>10.3f}"
        )
    rows = {"low resolution": judge.data["cond"][:SHOWN]}
    rows |= {name: found[name][0][:SHOWN] for name in PICTURED}
    picture(given.out, rows)
    print(f"picture: {given.out}")


if __name__ == "__main__":
    main()
