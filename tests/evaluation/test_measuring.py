"""``distilljax evaluate`` from files to numbers, comparisons and refusals."""

import dataclasses
import json

import numpy as np
import pytest

from distilljax import cli, evaluation
from distilljax.evaluation import features, measuring
from distilljax.evaluation.measures import DEFAULT, MEASURES, Measured, choose
from distilljax.evaluation.sample_files import target, write


@pytest.fixture(scope="module")
def place(tmp_path_factory, digits):
    """Files of real digits, of noisy ones, and of fewer in other shapes."""
    folder = tmp_path_factory.mktemp("evaluate")
    x, labels = digits
    x, labels = x[:600], labels[:600]
    rng = np.random.default_rng(0)
    noisy = np.clip(x[300:] + 0.2 * rng.normal(size=x[300:].shape), -1, 1)
    np.savez(folder / "real.npz", x=x[:300], label=labels[:300])
    np.savez(folder / "noisy.npz", images=noisy, labels=labels[300:])
    np.savez(folder / "points.npz", x=rng.normal(size=(50, 2)))
    np.savez(folder / "wide.npz", x=np.repeat(x[:40], 2, axis=2))
    return folder


def run(place, *arguments, samples="noisy.npz", reference="real.npz"):
    given = [f"--samples={place / samples}", f"--reference={place / reference}"]
    return cli.main(["evaluate", *given, *(a.format(folder=place) for a in arguments)])


def test_all_measures_from_the_shell(place, capsys):
    out, kept = place / "a.json", place / "statistics.npz"
    status = run(
        place, "--features=digits", "--metrics=all", f"--out={out}",
        f"--save-statistics={kept}", "--seed=3",
    )  # fmt: skip
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert "warning: 300 samples for 64 features make the Frechet" in shown.err
    found = measuring.read_report(out)
    assert list(found) == list(MEASURES)
    for name, measurement in found.items():
        assert np.isfinite(measurement.value)
        assert f"{name:<20}{measurement.value:>12.5g}" in shown.out
        assert (measurement.error is None) == (name in ("density", "vendi"))
        assert measurement.protocol.seed == 3
        assert measurement.protocol.samples == 300
        assert measurement.protocol.statistic == name
    report = json.loads(out.read_text())
    assert len(report["notes"]) == 1
    assert report["samples"] == str(place / "noisy.npz")
    assert report["versions"]["distilljax"]

    extractor = features.digits_classifier()
    x, y = (
        extractor(next(evaluation.read_samples(place / name).chunks()))
        for name in ("noisy.npz", "real.npz")
    )
    assert found["frechet"].value == pytest.approx(evaluation.frechet_distance(x, y))
    assert found["recall"].value == evaluation.precision_recall(y, x).recall
    assert found["accuracy"].value > 0.9

    # The statistics of the reference stand for it.
    again = place / "b.json"
    options = ("--features=digits", "--seed=3", f"--against={out}", f"--out={again}")
    assert run(place, *options, reference="statistics.npz") == 0
    shown = capsys.readouterr()
    assert "frechet is 1 +- " in shown.out
    assert list(measuring.read_report(again)) == ["frechet"]
    # Against another protocol it takes force.
    options = (*options[:1], "--seed=4", *options[2:], "--metrics=frechet")
    assert run(place, *options) == 2
    shown = capsys.readouterr()
    assert "different protocols (seed: 4 and 3)" in shown.err
    assert "--force" in shown.err
    assert run(place, *options, "--force") == 0
    assert "frechet is 1 +- " in capsys.readouterr().out


def test_statistics_of_other_programs_stay_unknown(place, capsys):
    x = evaluation.read_samples(place / "real.npz")
    moments = evaluation.Moments.of(next(x.chunks()).reshape(300, 64))
    np.savez(place / "other.npz", mu=moments.mean, sigma=moments.covariance)
    found = measuring.evaluate(
        evaluation.read_samples(place / "noisy.npz"),
        evaluation.read_reference(place / "other.npz"),
        features.pixels(),
        say=print,
    )
    assert "does not say its extractor" in capsys.readouterr().out
    assert found["frechet"].protocol.reference_samples is None
    known = measuring.evaluate(
        evaluation.read_samples(place / "noisy.npz"), x, features.pixels(), "frechet"
    )
    assert found["frechet"].value == pytest.approx(known["frechet"].value, rel=1e-9)
    with pytest.raises(ValueError, match="of 64 features, random_conv.* makes 448"):
        measuring.evaluate(
            evaluation.read_samples(place / "noisy.npz"),
            evaluation.read_reference(place / "other.npz"),
            features.random_convolutions(),
        )
    with pytest.raises(ValueError, match="reference_samples: None and 300"):
        evaluation.ratio(found["frechet"], known["frechet"])


def test_points_have_no_range_and_no_rounding(place):
    points = evaluation.read_samples(place / "points.npz")
    found = measuring.evaluate(points, points, features.pixels(), "energy_distance,kid")
    assert found["energy_distance"].value == pytest.approx(0, abs=1e-12)
    assert found["kid"].protocol.settings[-2:] == (
        ("subset_size", 25),
        ("subsets", 100),
    )
    assert found["kid"].protocol.rounding == "none"
    assert found["kid"].protocol.value_range == "none"


@pytest.mark.parametrize(
    ("options", "files", "message"),
    [
        (["--metrics=fid"], {}, "unknown metric 'fid'"),
        (
            ["--metrics=frechet,reca"],
            {},
            "unknown metric 'reca'. Did you mean 'recall'",
        ),
        (["--metrics=accuracy"], {}, "needs a classifier: use features digits"),
        (["--features=incepton:x"], {}, "Did you mean 'inception'"),
        (["--features=inception:{folder}/no.npz"], {}, "no weights at"),
        (["--features=torch_fidelity:a:b"], {}, "pip install 'distilljax[eval]'"),
        (["--rounding=8bit"], {}, "unknown rounding '8bit'"),
        (["--range=1,1"], {}, "unknown range '1,1'. Did you mean"),
        (["--against={folder}/none.json"], {}, "no report at"),
        (["--against={folder}/real.npz"], {}, "is no report of distilljax evaluate"),
        ([], {"samples": "none.npz"}, "no file at"),
        ([], {"samples": "wide.npz"}, "one shape, got (8, 16, 1) in"),
        ([], {"samples": "points.npz"}, "one shape, got (2,) in"),
        (["--refrence=x"], {}, "'--refrence'. Did you mean '--reference'"),
    ],
)
def test_wrong_words_end_with_2_and_say_what_there_is(
    place, capsys, options, files, message
):
    try:
        status = run(place, *options, **files)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_statistics_of_other_features_are_refused(place, capsys):
    kept = place / "pixels.npz"
    options = ["--metrics=frechet", f"--save-statistics={kept}"]
    assert run(place, *options) == 0
    for more, message in (
        (["--features=random_convolutions"], "was made with features_fingerprint"),
        (["--features=digits"], "was made with features_fingerprint"),
        (["--rounding=none"], "was made with rounding uint8"),
        (["--metrics=recall"], "needs the reference's samples: pass them instead"),
    ):
        assert run(place, *more, reference="pixels.npz") == 2
        assert message in capsys.readouterr().err


def test_wide_samples_are_measured_by_features_and_not_by_pixels(tmp_path, capsys):
    """The jackknife of as many pixels takes minutes."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        x = rng.uniform(-1, 1, (16, 20, 20, 3)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x)
    out, files = tmp_path / "out.json", {"samples": "a.npz", "reference": "b.npz"}
    assert run(tmp_path, f"--out={out}", **files) == 0
    error = capsys.readouterr().err
    assert "features random_convolutions, since samples have 1200 values" in error
    found = measuring.read_report(out)
    assert tuple(found) == DEFAULT
    assert found["kid"].protocol.features == "random_convolutions(seed=0)"
    assert run(tmp_path, "--features=pixels", f"--out={out}", **files) == 0
    assert "frechet is left out: of 1200 pixels" in capsys.readouterr().err
    assert tuple(measuring.read_report(out)) == DEFAULT[1:]


def test_features_are_those_of_given_statistics(place, capsys):
    kept = f"--save-statistics={place / 'kept.npz'}"
    for name, text in (
        ("digits", "digits"),
        ("random_convolutions(seed=3)", "random_convolutions:3"),
    ):
        assert run(place, f"--features={text}", "--metrics=frechet", kept) == 0
        assert run(place, reference="kept.npz") == 0
        assert f"features {name} of 300 samples" in capsys.readouterr().err
    np.savez(place / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert run(place, reference="other.npz") == 2
    assert "not recorded; say how" in capsys.readouterr().err


def test_own_files_say_their_range_and_what_they_are(place, tmp_path, capsys):
    dark = np.random.default_rng(0).uniform(0.0, 0.5, (40, 8, 8, 1))
    record = {"value_range": "[-1, 1]", "seed": 3}
    write(target(tmp_path / "dark.png", dark.shape[1:]), dark, None, record)
    out = tmp_path / "out.json"
    samples = tmp_path / "dark.png"
    assert run(place, f"--out={out}", "--metrics=kid", samples=samples) == 0
    assert "the samples of the picture" in capsys.readouterr().err
    report = json.loads(out.read_text())
    assert report["record"] == record
    assert report["measurements"]["kid"]["protocol"]["value_range"] == "[-1, 1]"


def test_a_metric_that_fails_names_the_option_that_mends_it(place, tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "few.npz", x=rng.uniform(-1, 1, (1, 8, 8, 1)))
    np.savez(tmp_path / "flat.npz", x=np.full((40, 8, 8, 1), -1.0))
    out = tmp_path / "out.json"
    few = {"samples": tmp_path / "few.npz", "reference": "real.npz"}
    assert run(place, f"--out={out}", "--metrics=all", **few) == 0
    found = measuring.read_report(out)
    for name, least in (("frechet", 2), ("kid", 2), ("precision", 4), ("recall", 4)):
        assert f"at least {least} samples (--samples;" in found[name].failed
        assert "got 1" in found[name].failed
    for name in ("density", "coverage", "vendi", "memorised"):
        assert not found[name].failed
    few = {"samples": "noisy.npz", "reference": tmp_path / "few.npz"}
    assert run(place, "--metrics=memorised", **few) == 2
    assert "4 reference images (--reference), got 300 and 1" in capsys.readouterr().err
    flat = {"samples": "noisy.npz", "reference": tmp_path / "flat.npz"}
    assert run(place, "--metrics=mmd", "--range=-1,1", **flat) == 2
    assert "(--features)" in capsys.readouterr().err


def test_what_can_be_refused_is_refused_before_the_work(place):
    def apply(params, x):
        raise AssertionError("features were computed")

    extractor = features.FeatureExtractor("x", "x", apply, traced=False)
    samples = evaluation.read_samples(place / "points.npz")
    for reference, metrics, message in (
        ("points.npz", "recal", "Did you mean 'recall'"),
        ("points.npz", "accuracy", "needs labels"),
        ("real.npz", None, "one shape"),
    ):
        found = evaluation.read_reference(place / reference)
        with pytest.raises(ValueError, match=message):
            measuring.evaluate(samples, found, extractor, metrics)


def test_the_usual_measures_are_those_that_can_be_had():
    assert choose(None, frozenset({"reference"})) == DEFAULT
    assert choose(None, frozenset()) == ("frechet",)
    assert choose("all", frozenset()) == ("frechet", "vendi")
    assert choose("recall, kid", frozenset({"reference"})) == ("recall", "kid")


def test_settings_of_the_protocol_are_those_of_the_functions():
    """What the protocol says of k is what precision and density are computed with."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(0.5, 1, (50, 3))
    extracted = features.Extracted(x)
    measured = Measured(extracted, evaluation.Moments.of(y), None, y)
    k = MEASURES["recall"].settings(measured)["k"]
    expected = evaluation.precision_recall(y, x, k)
    assert MEASURES["recall"].run(measured, {})[0] == expected.recall
    k = MEASURES["density"].settings(measured)["k"]
    expected = evaluation.density_coverage(y, x, k)
    assert MEASURES["density"].run(measured, {})[0] == expected.density


def test_one_metric_that_cannot_be_computed_leaves_the_others(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "two.npz", x=rng.normal(size=(2, 4)))
    np.savez(tmp_path / "equal.npz", x=np.ones((20, 4)))
    np.savez(tmp_path / "real.npz", x=rng.normal(size=(60, 4)))
    out = tmp_path / "a.json"
    files = {"samples": "two.npz", "reference": "real.npz"}
    metrics = "--metrics=frechet,precision"
    assert run(tmp_path, f"--out={out}", metrics, **files) == 0
    shown = capsys.readouterr()
    assert "precision                      -" in shown.out
    assert "it takes at least 4 samples (--samples" in shown.out
    assert "warning: precision cannot be computed" in shown.err
    found = measuring.read_report(out)
    assert np.isfinite(found["frechet"].value)
    assert np.isnan(found["precision"].value)
    assert "at least 4 samples" in found["precision"].failed
    with pytest.raises(ValueError, match="no number to compare: it takes at least"):
        evaluation.ratio(found["precision"], found["precision"])
    assert run(tmp_path, f"--against={out}", metrics, **files) == 0
    assert "precision is" not in capsys.readouterr().out

    same = {"samples": "equal.npz", "reference": "equal.npz"}
    assert run(tmp_path, "--metrics=mmd,energy_distance", **same) == 0
    assert "positive median distance" in capsys.readouterr().out
    assert run(tmp_path, "--metrics=mmd", **same) == 2
    message = capsys.readouterr().err
    assert "none of the metrics can be computed of samples" in message
    assert "bandwidth=" not in message


def test_numbers_that_are_not_finite_are_no_numbers(place, monkeypatch):
    points = evaluation.read_samples(place / "points.npz")
    broken = dataclasses.replace(MEASURES["vendi"], run=lambda m, s: (np.inf, 0.0))
    monkeypatch.setitem(MEASURES, "vendi", broken)
    with pytest.raises(ValueError, match="vendi: it came out as inf"):
        measuring.evaluate(points, points, features.pixels(), "vendi")
