import dataclasses
import re

import numpy as np
import pytest

from distilljax import data
from distilljax.core.method import Follow, Role, Term, check
from distilljax.training import train
from distilljax.training.checks import check_frozen
from tests import toy
from tests.training import small
from tests.training.test_cycle import NETWORKS, imitating
from tests.training.test_state import TEACHER

CONFIG = {"cycles": 2, "batch_size": 32}


def refused(method, words, *, networks=NETWORKS, stream=None, folder=None, **config):
    """Trains, expects a ValueError with all words, and that nothing was written."""
    stream = small.Stream() if stream is None else stream
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        train(
            method, networks, {"teacher": TEACHER} if "teacher" in method.roles else {},
            stream, {**CONFIG, **config}, folder, progress=False,
        )  # fmt: skip
    for word in words:
        assert word in str(error.value)


def with_roles(method, **roles):
    return check(method._replace(roles={**method.roles, **roles}))


def test_networks():
    refused(
        imitating(), ["'teacher'", "'backbone'", "backbon"], networks={"backbon": 1}
    )
    needs = Role(init="random", needs=frozenset({"second_time", "jvp"}))
    words = ["'student'", "second_time", "'mlp'", "jvp, taps", "second_time=True"]
    refused(with_roles(imitating(), student=needs), words)
    bare = dataclasses.replace(small.NETWORK, path=None, prediction=None)
    words = ["'teacher'", "path", "paths.linear()"]
    refused(imitating(), words, networks={**NETWORKS, "teacher": bare})


def test_config_against_method():
    refused(imitating(), ["techer", "teacher"], techer={"lr": 1.0})
    refused(imitating(), ["'teacher'", "does not train"], teacher={"lr": 1.0})
    late = Role(init="student", follow=Follow("student", after="critik"))
    refused(with_roles(imitating(), late=late), ["'late'", "critik", "student"])


def test_sizes():
    refused(imitating(), ["30", "4"], batch_size=30, student={"accumulate": 4})
    coupled = imitating(Term("mmd", small.imitate, coupled=True))
    refused(coupled, ["'student'", "mmd", "accumulate=1"], student={"accumulate": 4})
    refused(imitating(), ["[1, 1, 32]", "(1, 1, 16, 2)"], stream=small.Stream(size=16))
    refused(imitating(), ["4096 devices"], mesh={"data": 4096})


class Changed(small.Stream):
    def __init__(self, **fields):
        super().__init__()
        self.fields = fields

    def __next__(self):
        return {**super().__next__(), **self.fields}


def test_data():
    nan = np.full((1, 1, 32, 2), np.nan, np.float32)
    refused(imitating(), ["'x0'", "finite", "64"], stream=Changed(x0=nan))
    method = imitating()._replace(batch=frozenset({"x0", "cond"}))
    refused(method, ["'cond'", "x0"])
    refused(method, ["'cond'", "x0"], stream=data.arrays(np.zeros((9, 2), np.float32)))
    refused(imitating(), ["empty"], stream=[])
    refused(imitating(), ["source", "int"], stream=3)


def test_labels():
    networks = {"backbone": toy.mlp((2,), num_classes=3)}
    cond = np.full((1, 1, 32), 3, np.int32)
    method = small.regression()
    words = ["0 .. 2", "'mlp'", "3"]
    refused(method, words, networks=networks, stream=Changed(cond=cond))
    refused(method, ["0 .. 2", "-1"], networks=networks, stream=Changed(cond=cond - 4))
    labelled = data.arrays(
        np.zeros((9, 2), np.float32), np.arange(9, dtype=np.int32) % 5, num_classes=5
    )
    refused(method, ["5 classes", "num_classes=5"], networks=networks, stream=labelled)


def test_a_run_goes_on_with_the_parameters_that_it_began_with():
    """Whatever their path: a teacher that stays, and one that a role started from."""
    check_frozen({"frozen": 1}, {"frozen": 1})
    check_frozen({"frozen": 1, "start": 2}, {"frozen": 1})
    with pytest.raises(ValueError, match="other parameters than when"):
        check_frozen({"frozen": 1}, {"frozen": 2})
    with pytest.raises(ValueError, match="started from had other"):
        check_frozen({"frozen": 1, "start": 2}, {"frozen": 1, "start": 3})


def test_a_refused_run_leaves_no_folder(tmp_path):
    folder = tmp_path / "run"
    refused(imitating(), ["finite"], folder=folder, stream=Changed(
        x0=np.full((1, 1, 32, 2), np.inf, np.float32)
    ))  # fmt: skip
    assert not folder.exists()


def test_sample_shape_of_data_without_samples():
    method = imitating()._replace(batch=frozenset())

    class Empty(small.Stream):
        def __next__(self):
            return {}

    refused(method, ["sample_shape", "x0"], stream=Empty())
