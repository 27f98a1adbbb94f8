"""What the end of a training says about sampling."""

import pytest

from distilljax import hints, methods


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("flow_matching", {}, 16),
        ("denoising", {}, 16),
        ("progressive", {"steps": (8, 4)}, 4),
        ("progressive", {}, 1),
        ("lcm", {}, 4),
        ("tdm", {}, 4),
        ("ladd", {"steps": 2}, 2),
        ("dmd2", {}, 4),
        ("dmd2", {"steps": (1,)}, 1),
        ("rcm", {}, 4),
        ("pi_flow", {"steps": 4}, 4),
        ("sid", {}, 1),
        ("scm", {}, 1),
        ("mean_flow", {}, 1),
    ],
)
def test_a_student_is_sampled_in_the_steps_that_it_was_made_for(name, options, steps):
    line, *_ = hints.after_training(methods.build(name, **options), "runs/a b")
    assert line == f"sample it: distilljax sample --run='runs/a b' --steps={steps}"


def test_teachers_are_distilled():
    for name in ("flow_matching", "denoising", "scm", "ict", "shortcut"):
        lines = hints.after_training(methods.build(name), "r")
        wanted = name in ("flow_matching", "denoising")
        assert any("--teacher=r" in line for line in lines) == wanted


def test_what_a_student_reads_is_said():
    lines = hints.after_training(methods.build("tsd_sr", start="y"), "r")
    assert lines[0].endswith("--steps=1 --data=FILE.npz")
    assert lines[1].startswith("it edits and makes nothing of noise")
    assert "holds what it starts from, 'y'" in lines[1]
    lines = hints.after_training(methods.build("scm"), "r", conditional=True)
    assert "'cond'" in lines[1]
