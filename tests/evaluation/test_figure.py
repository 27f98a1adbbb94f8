"""The picture holds the grids' pixels, and refuses what does not fit."""

import io

import numpy as np
import pytest
from PIL import Image

from distilljax.evaluation.figure import colours, parse_block, report_figure
from distilljax.evaluation.plots import image_grid


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def find(picture, part):
    """Top left corners at which the part stands in the picture, exactly."""
    rows, columns = part.shape[:2]
    middle = rows // 20  # inside the first of ten tiles
    places = [
        (line - middle, row.tobytes().find(part[middle].tobytes()) // 3)
        for line, row in enumerate(picture)
    ]
    return [
        (top, left)
        for top, left in places
        if left >= 0
        and np.array_equal(picture[top : top + rows, left : left + columns], part)
    ]


def test_block_names():
    assert parse_block("mean_flow_nfe4") == ("mean_flow_nfe4", "mean_flow", 4)
    assert parse_block("data") == ("data", "data", None)
    assert parse_block("_nfe4").nfe is None
    assert parse_block("scm_nfex").sampler == "scm_nfex"


def test_colours_are_distinct_and_stable(report):
    chosen = colours(report)
    assert set(chosen) == {"teacher", "scm", "dmd2"}
    assert len(set(chosen.values())) == 3


def test_every_grid_stands_in_the_picture_unscathed(report, grids, curves):
    picture = pixels(report_figure(report, grids, curves, columns=2))
    places = []
    for images in grids.values():
        # The blocks' scale is the layout's choice; some integer scale must match.
        found = [
            corner
            for scale in range(12, 2, -1)
            for corner in find(picture, image_grid(images, 2, scale))
        ]
        assert len(found) == 1
        places += found
    tops, lefts = zip(*places, strict=True)
    assert len(set(tops)) == 1
    assert list(lefts) == sorted(lefts)


def test_the_picture_is_the_same_every_time(report, grids, curves):
    assert report_figure(report, grids, curves) == report_figure(report, grids, curves)


def test_what_is_missing_is_left_out(report, grids, curves):
    full = pixels(report_figure(report, grids, curves))
    assert pixels(report_figure(report, {}, curves)).shape[0] < full.shape[0]
    assert pixels(report_figure(report, grids, {})).shape[0] == full.shape[0]
    report["students"] = []
    assert pixels(report_figure(report, grids, {})).shape[0] < full.shape[0]


def test_unknown_numbers_do_not_stop_it(report, grids, curves):
    for row in [report["teacher"], *report["students"]]:
        row["frechet"] = None
    curves["scm"]["frechet"] = [np.nan, np.nan]
    curves["dmd2"]["loss"] = [np.nan] * len(curves["dmd2"]["loss"])
    assert pixels(report_figure(report, grids, curves)).shape[1] == 2560


def test_large_images_are_reduced_to_fit(report):
    images = np.zeros((2, 512, 512, 3), np.float32)
    grids = {f"scm_nfe{k}": images for k in range(1, 9)}
    assert pixels(report_figure(report, grids, {}, columns=2)).shape[1] == 2560


def test_bad_grids_and_curves_are_named(report, grids, curves):
    with pytest.raises(ValueError, match=r"grids .*multiple of columns=3"):
        report_figure(report, grids, curves, columns=3)
    with pytest.raises(ValueError, match=r"grids .*'data': 10"):
        report_figure(report, grids | {"data": grids["data"][:10]}, curves)
    with pytest.raises(ValueError, match=r"curves\['scm'\] .*'step' and 'loss'"):
        report_figure(report, grids, {"scm": {"step": [1, 2], "loss": [1.0]}})
    bad = {"step": [1], "loss": [1.0], "frechet": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"curves\['scm'\] .*'frechet_step'"):
        report_figure(report, grids, {"scm": bad})
