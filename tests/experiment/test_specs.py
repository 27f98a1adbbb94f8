"""Values written as text: names that registered themselves, and nothing else."""

import inspect

import pytest

from distilljax import (
    clocks,
    draws,
    losses,
    metrics,
    paths,
    solvers,
    times,
    transforms,
)
from distilljax.experiment.specs import parse, resolve
from distilljax.methods import CATALOGUE, fits


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1.5e-3", -1.5e-3),
        ("None", None),
        ("True", True),
        ("'text'", "text"),
        ("(1, 2.0, [3])", (1, 2.0, (3,))),
        ("{'a': 1, 'b': (2,)}", {"a": 1, "b": (2,)}),
        ("LogNormal(-1.0, 1.4)", times.LogNormal(-1.0, 1.4)),
        (" Ramp(steps=10, end=0.5) ", times.Ramp(10, end=0.5)),
        ("Shifted(Uniform(), 5.0)", times.Shifted(times.Uniform(), 5.0)),
        ("central(0.02)", times.central(0.02)),
        ("InClock(Uniform())", times.InClock(times.Uniform())),
        ("ShiftedGrid(3.2, 0.5)", times.ShiftedGrid(3.2, 0.5)),
        (
            "Mixture(((0.7, LogitNormal()), (0.3, Point(1.0))))",
            times.Mixture(((0.7, times.LogitNormal()), (0.3, times.Point(1.0)))),
        ),
        (
            "ByPath(central(0.02), edm=KarrasUniform(0.02, 0.98), vp=Timesteps())",
            clocks.ByPath(
                times.central(0.02),
                edm=clocks.KarrasUniform(0.02, 0.98),
                vp=clocks.Timesteps(),
            ),
        ),
        (repr(clocks.CLOCK_GRID), clocks.CLOCK_GRID),
        ("Fit('x0', weight=MinSNR(5.0))", fits.Fit("x0", weight=fits.MinSNR(5.0))),
        ("vp_scaled_linear()", paths.vp_scaled_linear()),
        ("TableGrid(((1.0, 0.5),))", times.TableGrid(((1.0, 0.5),))),
        ("trigflow(0.5)", paths.trigflow(0.5)),
        ("Heun()", solvers.Heun()),
        ("PseudoHuberVector(0.1)", metrics.PseudoHuberVector(0.1)),
        ("sum_squares", metrics.sum_squares),
        ("exact", losses.exact),
        (
            "TeacherTrajectory(4, solver=Euler(), path=linear())",
            draws.TeacherTrajectory(4, solver=solvers.Euler(), path=paths.linear()),
        ),
    ],
)
def test_text_is_the_value_that_it_says(text, value):
    assert parse(text) == value


def test_transforms_take_their_options():
    made = parse("normalize_tangent(constant=0.2, norm=rms_norm)")
    assert made.func is transforms.normalize_tangent
    assert made.keywords == {"constant": 0.2, "norm": transforms.rms_norm}
    assert parse("normalize_tangent") is transforms.normalize_tangent


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getcwd()",
        "open('x')",
        "print(1)",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "times.Uniform()",
        "Uniform().low",
        "1 + 1",
        "Uniform(*(0.1, 0.2))",
        "f'{1}'",
    ],
)
def test_nothing_else_is_run(text):
    with pytest.raises(ValueError, match="unknown name|only literals and calls"):
        parse(text)


def test_unknown_names_list_the_near_ones():
    with pytest.raises(ValueError, match=r"LogNormall\(1\).*Did you mean 'LogNormal'"):
        parse("LogNormall(1)")
    with pytest.raises(ValueError, match="Did you mean 'half_mse'"):
        parse("half_mes")


def test_wrong_arguments_say_where():
    with pytest.raises(ValueError, match=r"in 'Ramp\(stops=3\)'.*stops"):
        parse("Ramp(stops=3)")
    with pytest.raises(ValueError, match="low < high"):
        parse("Uniform(0.9, 0.1)")
    for text in ("-'a'", "{{}: 1}"):
        with pytest.raises(ValueError, match=r"^in "):
            parse(text)
    for text in ("1e999", "LogNormal(-1e999, 1.4)"):
        with pytest.raises(ValueError, match="must be a finite number"):
            parse(text)
    with pytest.raises(ValueError, match=r"cannot read 'Ramp\(3'"):
        parse("Ramp(3")


def test_resolve_reads_what_is_a_name_and_keeps_the_rest():
    given = {
        "law": "Uniform(0.1, 0.9)",
        "metric": "half_mse",
        "name": "mlp",
        "steps": [1, 2],
        "inner": {"tangent": None, "path": "linear()"},
    }
    assert resolve(given) == {
        "law": times.Uniform(0.1, 0.9),
        "metric": metrics.half_mse,
        "name": "mlp",
        "steps": (1, 2),
        "inner": {"tangent": None, "path": paths.linear()},
    }


def test_laws_grids_and_schedules_of_the_catalogue_read_their_own_text():
    module = times.__name__
    seen = 0
    for entry in CATALOGUE.values():
        for parameter in inspect.signature(entry.factory).parameters.values():
            value = parameter.default
            if type(value).__module__.startswith(module):
                assert parse(repr(value)) == value
                seen += 1
    assert seen > 10
