"""JSON stays strict."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.evaluation.files import dump_json, strict


def test_strict_turns_what_is_not_finite_into_null_with_a_note():
    value = {
        "a": float("nan"),
        "b": [1, np.float32(0.5), np.inf],
        "c": np.array([[1, 2], [3, 4]]),
        "d": jnp.asarray(-jnp.inf),
        "e": (True, None, "x", Path("y")),
        3: np.int32(7),
    }
    plain, notes = strict(value)
    assert plain == {
        "a": None,
        "b": [1, 0.5, None],
        "c": [[1, 2], [3, 4]],
        "d": None,
        "e": [True, None, "x", "y"],
        "3": 7,
    }
    assert notes == [
        "report.a was nan, written as null",
        "report.b[2] was inf, written as null",
        "report.d was -inf, written as null",
    ]
    assert json.loads(dump_json(plain)) == plain


def test_strict_refuses_what_json_cannot_hold():
    with pytest.raises(TypeError, match=r"report\.a\[1\] must be .*got object"):
        strict({"a": [1, object()]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json(float("nan"))
