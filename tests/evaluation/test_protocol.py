"""Numbers travel with their protocol, and unlike ones are not compared."""

import dataclasses
import json

import pytest

from distilljax.evaluation import Measurement, Protocol, difference, ratio

PROTOCOL = Protocol(
    statistic="kid",
    features="inception",
    features_fingerprint="abc",
    samples=50000,
    reference_samples=10000,
    reference="test.npz",
    reference_fingerprint="def",
    settings={"subsets": 100, "seed": 2020},
)
A = Measurement(3.0, PROTOCOL, 0.3)
B = Measurement(2.0, dataclasses.replace(PROTOCOL, reference="elsewhere.npz"), 0.4)


def other(**changes):
    return Measurement(2.0, dataclasses.replace(PROTOCOL, **changes))


def test_equal_protocols_are_compared():
    """Another name of the same reference is the same reference."""
    assert difference(A, B) == (1.0, pytest.approx(0.5))
    assert ratio(A, B) == (1.5, pytest.approx(1.5 * (0.1**2 + 0.2**2) ** 0.5))
    assert ratio(A, other()) == (1.5, pytest.approx(0.15))
    with pytest.raises(ValueError, match="b = 0"):
        ratio(A, Measurement(0.0, PROTOCOL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 5000}, "samples: 50000 and 5000"),
        ({"reference_samples": None}, "reference_samples: 10000 and None"),
        ({"reference_fingerprint": "x"}, "reference_fingerprint: def and x"),
        ({"features_fingerprint": "x"}, "features_fingerprint: abc and x"),
        ({"rounding": "none"}, "rounding: uint8 and none"),
        ({"seed": 1}, "seed: None and 1"),
        ({"statistic": "mmd"}, "statistic: kid and mmd"),
        (
            {"settings": {"subsets": 10, "k": 3}},
            "k: None and 3; seed: 2020 and None; subsets: 100 and 10",
        ),
        ({"value_range": "none"}, r"value_range: \[-1, 1\] and none"),
    ],
)
def test_other_protocols_are_refused_unless_forced(changes, message):
    unlike = other(**changes)
    for compare in (difference, ratio):
        with pytest.raises(ValueError, match=f"protocols .{message}.*force"):
            compare(A, unlike)
    assert difference(A, unlike, force=True).value == 1.0
    assert ratio(A, unlike, force=True).value == 1.5


def test_every_field_travels_through_json():
    for measurement in (A, other(seed=3, reference_samples=None)):
        text = json.dumps(measurement.to_dict(), allow_nan=False)
        assert Measurement.from_dict(json.loads(text)) == measurement


def test_malformed_records_are_named():
    found = A.to_dict()
    with pytest.raises(ValueError, match="must have value and protocol"):
        Measurement.from_dict({})
    with pytest.raises(ValueError, match="unknown field .* 'seeds'.*'seed'"):
        Measurement.from_dict(found | {"protocol": found["protocol"] | {"seeds": 1}})
    del found["protocol"]["samples"]
    with pytest.raises(ValueError, match="a protocol must have samples"):
        Measurement.from_dict(found)
    with pytest.raises(ValueError, match="unknown rounding 'int8'.*'uint8'"):
        other(rounding="int8")
