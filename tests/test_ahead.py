"""Cycles compiled for chips that are not there.

The compiler is the package libtpu. Inside the environment it would be asked for chips
whenever jax starts, so that the long test puts it beside it.
"""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from distilljax import ahead, cards

ROOT = pathlib.Path(__file__).parent.parent
GIB = 2**30


def found(**changes):
    values = {
        "method": "scm",
        "topology": "v5e:4x4",
        "chips": 16,
        "arguments": 10 * GIB,
        "temporaries": 4 * GIB,
        "limit": 16 * GIB,
        "flops": 3 * 10**12,
        "collectives": {"all-reduce": 3},
        "seconds": 30.0,
    }
    return ahead.Compiled(**{**values, **changes})


def test_a_cycle_fits_or_says_that_it_does_not():
    assert found().fits
    text = str(found())
    for part in ("16 chips", "10.00 GiB", "4.00 GiB", "3.00 TFLOP", "all-reduce 3"):
        assert part in text
    large = found(temporaries=7 * GIB)
    assert not large.fits
    assert "DOES NOT FIT" in str(large)


def test_an_unknown_chip_is_refused_with_what_exists():
    with pytest.raises(ValueError, match=r"unknown chip 'v5x'.*v5e"):
        ahead.topology_mesh("v5x:2x2")


def test_samples_are_shaped_without_data():
    config = cards.load(ROOT / "configs" / "latent" / "scm.py")
    sample = ahead.sample_of(cards.outline(config))
    assert sample == {
        "x0": jax.ShapeDtypeStruct((32, 32, 4), jnp.float32),
        "cond": jax.ShapeDtypeStruct((), jnp.int32),
    }
    plain = ahead.sample_of(cards.Outline((2,), None))
    assert set(plain) == {"x0"}
    pair = ahead.sample_of(cards.Outline((2,), None, 5), ("eps",))
    assert pair["eps"] == pair["x0"] == jax.ShapeDtypeStruct((2,), jnp.float32)
    assert pair["cond"] == jax.ShapeDtypeStruct((5,), jnp.float32)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Environment variables under which libtpu is found."""
    wanted = [
        re.split(r"[ ;]", line)[0]
        for line in importlib.metadata.requires("jax") or []
        if line.startswith("libtpu")
    ]
    folder = tmp_path_factory.mktemp("libtpu")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*command, "--target", str(folder), *wanted], check=True)
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


CARDS = [
    f"{folder}/{name}.py"
    for folder in ("cifar", "latent")
    for name in ("scm", "mean_flow", "dmd2", "rcm")
]


@pytest.mark.full
@pytest.mark.parametrize("card", CARDS)
def test_cards_fit_their_chips(beside, card):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "distilljax", "compile"),
            *(f"--config=configs/{card}", "--topology=v5e:4x4"),
        ],
        cwd=ROOT,
        env=beside,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    print(done.stdout)
    assert "16 chips" in done.stdout
    assert "all-reduce" in done.stdout
    assert "all-gather" not in done.stdout
