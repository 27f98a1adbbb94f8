"""Traces of chosen cycles, and the names that operations carry in them."""

import contextlib
import re

import jax
import numpy as np
import pytest

from distilljax import methods
from distilljax.core.method import batches
from distilljax.training import build_cycle, train
from distilljax.training.profile import Profile
from tests.methods import cases
from tests.training import small
from tests.training.test_cycle import NETWORKS
from tests.training.test_loop import CONFIG, source

# Names are the same at every level of optimisation.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture
def traces(monkeypatch):
    """Starts and ends of traces, in order."""
    calls = []
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda folder: calls.append(("start", folder))
    )
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    monkeypatch.setattr(
        jax.profiler,
        "StepTraceAnnotation",
        lambda name, step_num: (
            calls.append((name, step_num)) or contextlib.nullcontext()
        ),
    )
    return calls


def followed(profile, cycles):
    for step in cycles:
        with profile.cycle(step, ()):
            pass
        profile.after(step, ())
    profile.close()


@pytest.mark.parametrize(
    ("cycles", "run", "inside"),
    [
        ((2, 3), range(1, 6), [2, 3]),
        ((1, 1), range(1, 6), [1]),
        ((2, 5), range(1, 4), [2, 3]),
        ((2, 4), range(4, 6), [4]),
        ((2, 3), range(4, 6), []),
        (None, range(1, 6), []),
    ],
)
def test_a_trace_holds_its_cycles_only(tmp_path, traces, cycles, run, inside):
    """Also in a run that ends inside it or continues inside or after it."""
    followed(Profile(cycles, tmp_path, 5), run)
    steps = [("cycle", step) for step in inside]
    ends = [("start", str(tmp_path)), ("stop",)] if inside else []
    assert traces == [*ends[:1], *steps, *ends[1:]]


@pytest.mark.parametrize("cycles", [(0, 2), (3, 2), (2, 6), (6, 7)])
def test_cycles_that_the_run_lacks_are_refused(tmp_path, cycles):
    with pytest.raises(ValueError, match="first <= last <= 5"):
        Profile(cycles, tmp_path, 5)


def test_a_trace_needs_a_folder():
    args = (small.regression(), NETWORKS, None, source(), CONFIG)
    with pytest.raises(ValueError, match="profile needs a run folder"):
        train(*args, progress=False, profile=(2, 3))


def test_a_run_leaves_a_trace_once(tmp_path, capsys):
    args = (small.regression(), NETWORKS, None, source(), CONFIG)
    train(*args, tmp_path, progress=False, profile=(3, 4))
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"cycle" in content
    assert b"step_num" in content
    train(*args, tmp_path, progress=True, profile=(3, 4))
    assert "after cycle 6, past those to trace" in capsys.readouterr().err
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) == [trace]


METHODS = {
    "scm": {},
    "dmd2": {"steps": (1,), "critic_steps": 1, "gan_weight": 0.01},
}


def lowered(name):
    method = methods.build(name, **METHODS[name])
    setup, state, frozen = cases.setup(name, built=method)
    phases = setup.method.phases
    shape = (batches(phases), 1, 16)
    batch = {
        "x0": np.zeros((*shape, 2), np.float32),
        "cond": np.zeros(shape, np.int32),
    }
    return build_cycle(setup, phases).lower(state, frozen, batch)


def test_the_compiled_cycles_name_every_part(monkeypatch):
    """Forward ``jvp(name)``, and backward ``transpose(jvp(name))`` of what trains."""
    wanted = {
        "scm": [
            "/jvp(teacher)/dot_general",
            "/jvp(tangent)/jvp(student)/dot_general",
            "/transpose(jvp(tangent))/jvp(student)/dot_general",
            "/optimizer/",
        ],
        "dmd2": [
            "/jvp(student)/dot_general",
            "/transpose(jvp(student))/dot_general",
            "/jvp(teacher)/dot_general",
            "/jvp(critic/fake_score)/dot_general",
            "/transpose(jvp(critic/fake_score))/dot_general",
            "/jvp(critic/discriminator)/dot_general",
            "/transpose(jvp(critic/discriminator))/dot_general",
            "/optimizer/",
        ],
    }
    programs = {}
    for name, parts in wanted.items():
        program = lowered(name)
        programs[name] = program.as_text()
        names = re.findall(
            r'op_name="([^"]*)"',
            program.compile(compiler_options=QUICK).as_text(),
        )
        for part in parts:
            assert any(part in found for found in names), (name, part)
        products = [found for found in names if "dot_general" in found]
        roles = ("student", "teacher", "critic", "log_weight")
        assert all(any(role in found for role in roles) for found in products)
    monkeypatch.setattr(jax, "named_scope", lambda name: contextlib.nullcontext())
    assert lowered("scm").as_text() == programs["scm"]
